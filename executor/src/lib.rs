//! The port for running processes, and the OCI runtime spec made for a step.
