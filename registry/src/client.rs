//! The client itself: what all calls share.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::Client;

use crate::auth::Auth;
use crate::error::Result;
use crate::gate::Gates;
use crate::hosts::{Config, Target};
use crate::tls;

/// A client of registries. Clones share connections, tokens and gates.
#[derive(Clone, Debug)]
pub struct Registry {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    auth: Auth,
    gates: Gates,
    /// Made when a host is first spoken to, because certificates take time to read.
    clients: Mutex<HashMap<String, Client>>,
    /// Hosts that turned out to speak plain HTTP.
    plain: Mutex<HashSet<String>>,
}

impl Registry {
    /// Makes a client that also speaks plain HTTP, and HTTPS without verification, with `host`.
    #[must_use]
    pub fn insecure(&self, host: &str) -> Self {
        let mut config = self.shared.config.clone();
        let entry = config.hosts.entry(host.to_owned()).or_default();
        entry.http = Some(true);
        entry.insecure = Some(true);
        Self::new(config)
    }

    /// Makes a client. Nothing is read or connected to before it is needed.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let gates = Gates::new(config.max_concurrency);
        Self {
            shared: Arc::new(Shared {
                config,
                auth: Auth::new(),
                gates,
                clients: Mutex::default(),
                plain: Mutex::default(),
            }),
        }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.shared.config
    }

    pub(crate) fn auth(&self) -> &Auth {
        &self.shared.auth
    }

    pub(crate) fn gates(&self) -> &Gates {
        &self.shared.gates
    }

    pub(crate) fn client(&self, target: &Target) -> Result<Client> {
        let key = tls::client_key(self.config(), target);
        let mut clients = self.shared.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let client = tls::client(self.config(), target)?;
        clients.insert(key, client.clone());
        Ok(client)
    }

    pub(crate) fn is_plain(&self, host: &str) -> bool {
        let plain = self.shared.plain.lock().unwrap_or_else(PoisonError::into_inner);
        plain.contains(host)
    }

    pub(crate) fn remember_plain(&self, host: &str) {
        let mut plain = self.shared.plain.lock().unwrap_or_else(PoisonError::into_inner);
        plain.insert(host.to_owned());
    }
}
