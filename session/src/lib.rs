//! Client sessions: transport, file transfer, credentials, secrets and their lending to running work.
