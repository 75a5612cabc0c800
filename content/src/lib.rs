//! Content-addressed blobs, compression codecs and layer tars.
