//! Include and exclude patterns of build contexts, copies and ignore files.
