//! Build results turned into images, archives and directories.
