//! A certificate in two files, for a door of this node that is no service's port.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use model::service::{CertificateFiles, TlsVersion};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs::Ticketer;
use tokio_rustls::rustls::server::ProducesTickets;

use super::files::{self, Pair, Watched};
use super::names::ByName;
use super::server;

/// A certificate and its key, and what handshakes are done with because of them: TLS 1.2 and 1.3, sessions resumed with
/// tickets. Whoever has it calls [`Certificate::look`] now and then.
pub struct Certificate {
    files: CertificateFiles,
    alpn: Vec<Vec<u8>>,
    tickets: Arc<dyn ProducesTickets>,
    watched: Mutex<Watched<Pair>>,
    config: ArcSwap<ServerConfig>,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = &self.files;
        f.debug_struct("Certificate").field("files", files).finish()
    }
}

impl Certificate {
    /// Reads both files. `alpn` are the protocols that are offered (RFC 7301).
    ///
    /// # Errors
    /// Which file can't be used, and why.
    pub fn open(files: CertificateFiles, alpn: &[&[u8]]) -> Result<Self, String> {
        let mut watched = files::watch_pair(&files);
        watched.look(|bytes| files::pair(&files, bytes));
        let Some(pair) = watched.good() else {
            return Err(watched.error().unwrap_or_default().to_owned());
        };
        let tickets = Ticketer::new().map_err(|error| error.to_string())?;
        let alpn: Vec<Vec<u8>> = alpn.iter().map(|name| name.to_vec()).collect();
        let config = config(pair, &alpn, &tickets)?;
        Ok(Certificate {
            alpn,
            tickets,
            config: ArcSwap::new(config),
            watched: Mutex::new(watched),
            files,
        })
    }

    /// What a handshake is done with now.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }

    /// Reads the files again if they changed, which may wait for the disk. Says once what is wrong with them: what was
    /// good before is used on then.
    pub fn look(&self) -> Option<Result<(), String>> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if !watched.look(|bytes| files::pair(&self.files, bytes)) {
            return None;
        }
        let made = match (watched.error(), watched.good()) {
            (None, Some(pair)) => config(pair, &self.alpn, &self.tickets),
            (error, _) => Err(error.unwrap_or_default().to_owned()),
        };
        Some(made.map(|config| self.config.store(config)))
    }

    /// When the certificate expires, in seconds since 1970.
    pub fn not_after(&self) -> Option<i64> {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.good().map(|pair| pair.facts.not_after)
    }
}

fn config(
    pair: &Arc<Pair>,
    alpn: &[Vec<u8>],
    tickets: &Arc<dyn ProducesTickets>,
) -> Result<Arc<ServerConfig>, String> {
    let alpn: Vec<&[u8]> = alpn.iter().map(Vec::as_slice).collect();
    let shown = Arc::new(ByName::new([&**pair]));
    server::config(TlsVersion::V1_2, &alpn, shown, Arc::clone(tickets))
        .map(Arc::new)
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn new_files_count_from_the_next_handshake_on_and_bad_ones_are_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let files = CertificateFiles {
            cert_file: path("cert.pem"),
            key_file: path("key.pem"),
        };
        let error = Certificate::open(files.clone(), &[b"dot"]).unwrap_err();
        assert!(error.contains("cert.pem can't be read"), "{error}");
        let write = || {
            let made = rcgen::generate_simple_self_signed(vec!["dns.example".to_owned()]).unwrap();
            fs::write(&files.cert_file, made.cert.pem()).unwrap();
            fs::write(&files.key_file, made.signing_key.serialize_pem()).unwrap();
        };
        write();
        let certificate = Certificate::open(files.clone(), &[b"dot"]).unwrap();
        let first = certificate.config();
        assert_eq!(first.alpn_protocols, [b"dot"]);
        assert!(certificate.not_after().is_some());
        assert_eq!(certificate.look(), None);
        write();
        assert_eq!(certificate.look(), Some(Ok(())));
        assert!(!Arc::ptr_eq(&first, &certificate.config()));
        let second = certificate.config();
        fs::write(&files.key_file, "no key").unwrap();
        let error = certificate.look().unwrap().unwrap_err();
        assert!(error.contains("key.pem"), "{error}");
        assert_eq!(certificate.look(), None);
        assert!(Arc::ptr_eq(&second, &certificate.config()), "still shown");
    }
}
