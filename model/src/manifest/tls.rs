//! The rules of `tls` and `upstreamTls`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{FieldError, field};
use crate::service::{HealthPolicy, ServicePort, Tls, TlsVersion, UpstreamTls};

/// Certificates of one port: each is looked at for every client that names a server.
const MAX_CERTIFICATES: usize = 100;
/// Bytes of a path (PATH_MAX of Linux).
const MAX_PATH: usize = 4096;

pub(super) fn check_tls(path: &str, tls: &Tls) -> Result<(), FieldError> {
    let all = format!("{path}.certificates");
    if tls.certificates.is_empty() {
        return field(all, "at least one {certFile: …, keyFile: …} is needed");
    }
    if tls.certificates.len() > MAX_CERTIFICATES {
        return field(all, format!("at most {MAX_CERTIFICATES}"));
    }
    let mut seen = BTreeSet::new();
    for (index, files) in tls.certificates.iter().enumerate() {
        check_file(&format!("{all}[{index}].certFile"), &files.cert_file)?;
        check_file(&format!("{all}[{index}].keyFile"), &files.key_file)?;
        if !seen.insert(files) {
            return field(format!("{all}[{index}]"), "the same files are named twice");
        }
    }
    Ok(())
}

pub(super) fn check_upstream_tls(path: &str, tls: &UpstreamTls) -> Result<(), FieldError> {
    if let Some(file) = &tls.ca_file {
        check_file(&format!("{path}.caFile"), file)?;
    }
    if let Some(name) = &tls.server_name
        && !is_server_name(name)
    {
        let reason = format!("`{name}` is neither a DNS name nor an IP address");
        return field(format!("{path}.serverName"), reason);
    }
    Ok(())
}

/// What a newer version may ask for and this one doesn't do.
pub(super) fn refuse_unsupported_tls(
    path: &str,
    port: &ServicePort,
    health: Option<&HealthPolicy>,
) -> Result<(), FieldError> {
    if let Some(tls) = &port.tls
        && tls.min_version == TlsVersion::Unsupported
    {
        let reason = "use \"1.2\" or \"1.3\" (older versions are not spoken: RFC 8996)";
        return field(format!("{path}.tls.minVersion"), reason);
    }
    if port.upstream_tls.is_some()
        && let Some(HealthPolicy::Check(check)) = health
    {
        let kind = match (&check.http, &check.grpc) {
            (Some(_), _) => "http",
            (None, Some(_)) => "grpc",
            (None, None) => return Ok(()),
        };
        let reason = format!(
            "checks over TLS are not supported by this version of heddle, and {path} has upstreamTls: use tcp or docker"
        );
        return field(format!("spec.health.{kind}"), reason);
    }
    Ok(())
}

fn check_file(path: &str, file: &str) -> Result<(), FieldError> {
    if !file.starts_with('/') {
        let reason = format!("`{file}` is not an absolute path");
        return field(path, reason);
    }
    if file.len() > MAX_PATH || file.contains('\0') {
        return field(path, "not the path of a file");
    }
    Ok(())
}

/// A host name of RFC 1123, with the underscores that names of services have, or an address.
fn is_server_name(name: &str) -> bool {
    let is_label = |label: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        (1..=63).contains(&label.len())
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.parse::<IpAddr>().is_ok()
        || (name.len() <= 253
            && name.split('.').all(is_label)
            // Else it is an address that was mistyped (RFC 1123, 2.1).
            && !name.bytes().all(|b| b.is_ascii_digit() || b == b'.'))
}

#[cfg(test)]
mod tests;
