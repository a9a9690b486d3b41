//! TLS to etcd: which authorities are believed and which certificate is shown.
//!
//! The files are read for each new connection, so that replacing them needs no restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::client::ClientConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, RootCertStore};

use crate::store::StoreError;

/// What gRPC needs of the server, told while the connection is made (ALPN, RFC 7301).
const HTTP2: &[u8] = b"h2";

/// Files for connections to `https://` endpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates (PEM) of the authorities that may have signed those of etcd. Without it the authorities that this
    /// system trusts count.
    pub ca: Option<PathBuf>,
    /// What this node shows of itself, for an etcd that asks for it (`--client-cert-auth`).
    pub identity: Option<IdentityFiles>,
}

/// A client certificate with its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    /// The certificate and those between it and its authority (PEM), in this order.
    pub cert: PathBuf,
    /// Its private key (PEM: PKCS #8, PKCS #1 or SEC 1).
    pub key: PathBuf,
}

impl TlsFiles {
    /// Whether no file is named.
    pub fn is_empty(&self) -> bool {
        self.ca.is_none() && self.identity.is_none()
    }

    /// Reads the files. Blocks for as long as that takes.
    pub(super) fn load(&self) -> Result<ClientConfig, StoreError> {
        let roots = match &self.ca {
            Some(path) => authorities("registry.ca_file", path)?,
            None => of_this_system()?,
        };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| refused("registry.endpoints", Path::new(""), error.to_string()))?
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            Some(identity) => {
                let chain = certificates("registry.cert_file", &identity.cert)?;
                let key = PrivateKeyDer::from_pem_file(&identity.key)
                    .map_err(|error| refused("registry.key_file", &identity.key, pem(error)))?;
                builder.with_client_auth_cert(chain, key).map_err(|error| {
                    let reason = format!("{error} (with the certificate of registry.cert_file)");
                    refused("registry.key_file", &identity.key, reason)
                })?
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols.push(HTTP2.to_vec());
        Ok(config)
    }
}

fn authorities(setting: &'static str, path: &Path) -> Result<RootCertStore, StoreError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(setting, path)? {
        roots
            .add(certificate)
            .map_err(|error| refused(setting, path, error.to_string()))?;
    }
    Ok(roots)
}

fn certificates(
    setting: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, StoreError> {
    let found: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).and_then(|certificates| certificates.collect());
    match found {
        Ok(found) if found.is_empty() => {
            let reason = "no certificate (PEM) in it".to_owned();
            Err(refused(setting, path, reason))
        }
        Ok(found) => Ok(found),
        Err(error) => Err(refused(setting, path, pem(error))),
    }
}

fn of_this_system() -> Result<RootCertStore, StoreError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        let reason = "needed for https endpoints: this system has no authorities of its own";
        return Err(refused(
            "registry.ca_file",
            Path::new(""),
            reason.to_owned(),
        ));
    }
    Ok(roots)
}

fn pem(error: rustls::pki_types::pem::Error) -> String {
    use rustls::pki_types::pem::Error;
    match error {
        Error::NoItemsFound => "nothing of the kind expected (PEM) in it".to_owned(),
        Error::Io(error) => format!("can't be read: {error}"),
        other => format!("not PEM: {other}"),
    }
}

fn refused(setting: &'static str, path: &Path, reason: String) -> StoreError {
    StoreError::Config {
        setting,
        value: path.display().to_string(),
        reason,
    }
}
