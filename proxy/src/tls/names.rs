//! Which of a port's certificates a client is shown: by the server name that it asks for (SNI, RFC 6066, 3).

use std::collections::HashMap;
use std::sync::Arc;

use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;

use super::files::Pair;

/// The certificates of a port, in the manifest's order.
#[derive(Debug)]
pub(super) struct ByName {
    all: Vec<Arc<CertifiedKey>>,
    /// Indices into `all`: a name may have a certificate of each kind of key.
    exact: HashMap<String, Vec<usize>>,
    /// The same for `*.name`, which stands for one label (RFC 9525, 6.3).
    wildcard: HashMap<String, Vec<usize>>,
}

impl ByName {
    pub(super) fn new<'a>(pairs: impl IntoIterator<Item = &'a Pair>) -> Self {
        let mut by_name = ByName {
            all: Vec::new(),
            exact: HashMap::new(),
            wildcard: HashMap::new(),
        };
        for pair in pairs {
            let index = by_name.all.len();
            by_name.all.push(Arc::clone(&pair.key));
            for name in &pair.facts.names {
                let (names, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut by_name.wildcard, parent),
                    None => (&mut by_name.exact, name.as_str()),
                };
                names.entry(name.to_owned()).or_default().push(index);
            }
        }
        by_name
    }

    fn named(&self, name: &str) -> &[usize] {
        if let Some(exact) = self.exact.get(name) {
            return exact;
        }
        let parent = name.split_once('.').map(|(_, parent)| parent);
        let found = parent.and_then(|parent| self.wildcard.get(parent));
        found.map_or(&[], Vec::as_slice)
    }

    /// The first that `suits` of those for the name, else of all.
    fn choose(
        &self,
        name: Option<&str>,
        suits: impl Fn(&CertifiedKey) -> bool,
    ) -> Option<&Arc<CertifiedKey>> {
        if let [only] = self.all.as_slice() {
            return Some(only);
        }
        let named = name.map_or(&[][..], |name| self.named(name));
        let named = named.iter().map(|index| &self.all[*index]);
        named.chain(&self.all).find(|key| suits(key))
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let schemes = hello.signature_schemes();
        let suits = |key: &CertifiedKey| key.key.choose_scheme(schemes).is_some();
        self.choose(hello.server_name(), suits).cloned()
    }
}

#[cfg(test)]
mod tests;
