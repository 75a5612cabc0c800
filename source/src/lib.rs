//! Where inputs come from: images and local directories.
