//! What a frontend is, and the bridge it calls back through.
