//! `tls:` and `upstreamTls:` of a port: where TLS ends and where it begins.

use serde::{Deserialize, Serialize};

/// `tls:` of a port: TLS ends at this node, and the endpoints get what was inside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// At least one. The client's server name (SNI, RFC 6066, 3) chooses among them; a name that none of them is for, and
    /// no name, get the first.
    #[serde(default)]
    pub certificates: Vec<CertificateFiles>,
    /// The oldest version that clients may speak.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub min_version: TlsVersion,
}

/// A certificate with its key, as files of every node that serves the port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateFiles {
    /// The certificate and those between it and its authority (PEM), in this order. An absolute path.
    pub cert_file: String,
    /// Its private key (PEM: PKCS #8, PKCS #1 or SEC 1). An absolute path.
    pub key_file: String,
}

/// A version of TLS. Older ones are not spoken (RFC 8996).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TlsVersion {
    /// RFC 5246.
    #[default]
    #[serde(rename = "1.2")]
    V1_2,
    /// RFC 8446.
    #[serde(rename = "1.3")]
    V1_3,
    /// Written by a newer version than this; such a port is not served here.
    #[serde(other)]
    Unsupported,
}

/// `upstreamTls:` of a port: its endpoints are spoken to over TLS, and must prove who they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpstreamTls {
    /// Certificates (PEM) of the authorities that may have signed the endpoints'; none: those that each node's system
    /// trusts. An absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    /// The DNS name or address that must be in the endpoints' certificates; none: the address that is dialled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
}
