//! Files opened by hostile paths under a root that they cannot leave.
