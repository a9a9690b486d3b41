//! An authority with its certificates, in files and in memory, and clients that trust it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};

/// A certificate and its key, PEM.
pub struct Issued {
    pub cert: String,
    pub key: String,
}

/// An authority with a folder for files.
pub struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), &pem).unwrap();
        Authority {
            folder,
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// A certificate for these names, valid from 2020 to the given year.
    pub fn issue(&self, names: &[&str], until: i32) -> Issued {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        Issued {
            cert: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes `NAME.pem` and `NAME.key` in one step each, as a careful operator does.
    pub fn put(&self, name: &str, issued: &Issued) {
        for (extension, text) in [("pem", &issued.cert), ("key", &issued.key)] {
            let new = self.path("new");
            std::fs::write(&new, text).unwrap();
            std::fs::rename(new, self.path(&format!("{name}.{extension}"))).unwrap();
        }
    }

    /// A `tls:` field with these certificates.
    pub fn tls(&self, names: &[&str], more: &str) -> String {
        let files = |name: &&str| {
            let path = |extension| self.path(&format!("{name}.{extension}"));
            let (cert, key) = (path("pem"), path("key"));
            format!(
                "{{certFile: {}, keyFile: {}}}",
                cert.display(),
                key.display()
            )
        };
        let all: Vec<String> = names.iter().map(files).collect();
        format!("tls: {{certificates: [{}]{more}}}", all.join(", "))
    }

    /// The same with one certificate for `web.test`, which is written first.
    pub fn web(&self, more: &str) -> String {
        self.put("web", &self.issue(&["web.test"], 2090));
        self.tls(&["web"], more)
    }

    /// An `upstreamTls:` field that trusts this authority.
    pub fn upstream(&self, more: &str) -> String {
        let ca = self.path("ca.pem");
        format!("upstreamTls: {{caFile: {}{more}}}", ca.display())
    }

    /// A client that trusts this authority and speaks 1.2 and 1.3.
    pub fn client(&self, alpn: &[&str]) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        let pem = CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap();
        roots.add(pem).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&TLS12, &TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }

    /// The same that speaks 1.2 only.
    pub fn old_client(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        let pem = CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap();
        roots.add(pem).unwrap();
        ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&TLS12])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
    }

    /// For a backend that shows this certificate.
    pub fn server(&self, issued: &Issued, alpn: &[&str]) -> Arc<ServerConfig> {
        let cert = CertificateDer::from_pem_slice(issued.cert.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert], key)
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

/// A client's connection to a server of this name.
pub async fn connect(
    address: SocketAddr,
    name: &str,
    config: impl Into<Arc<ClientConfig>>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(address).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let handshake = TlsConnector::from(config.into()).connect(name, tcp);
    super::soon("a handshake", handshake).await
}
