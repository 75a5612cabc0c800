//! The Dockerfile language: parser and lowering to LLB.
