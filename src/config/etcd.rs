//! `registry.*` for etcd.

use std::path::Path;

use registry::store::{EtcdOptions, IdentityFiles, TlsFiles, UserFile};

use super::{Refused, RegistrySection};

/// An etcd cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Etcd {
    /// `registry.endpoints`: all `http://host:port`, or all `https://host:port`.
    pub endpoints: Vec<String>,
    /// `registry.ca_file`, `registry.cert_file` and `registry.key_file`.
    pub tls: TlsFiles,
    /// `registry.username` and `registry.password_file`.
    pub user: Option<UserFile>,
}

impl Etcd {
    pub(super) fn new(section: RegistrySection) -> Result<Etcd, Refused> {
        let endpoints = endpoints(section.endpoints)?;
        let tls = TlsFiles {
            ca: section.ca_file,
            identity: both(
                ("registry.cert_file", section.cert_file),
                ("registry.key_file", section.key_file),
            )?
            .map(|(cert, key)| IdentityFiles { cert, key }),
        };
        if !tls.is_empty() && !endpoints.iter().any(|e| e.starts_with("https://")) {
            let key = match &tls.ca {
                Some(_) => "registry.ca_file",
                None => "registry.cert_file",
            };
            return Err((
                key,
                "is for https endpoints: make those of registry.endpoints https".to_owned(),
            ));
        }
        let user = both(
            ("registry.username", section.username),
            ("registry.password_file", section.password_file),
        )?
        .map(|(name, password_file)| UserFile {
            name,
            password_file,
        });
        if user.as_ref().is_some_and(|user| user.name.is_empty()) {
            return Err(("registry.username", "is empty".to_owned()));
        }
        Ok(Etcd {
            endpoints,
            tls,
            user,
        })
    }

    /// What connects to it.
    pub fn options(&self) -> EtcdOptions {
        EtcdOptions {
            tls: self.tls.clone(),
            user: self.user.clone(),
            ..EtcdOptions::new(self.endpoints.clone())
        }
    }

    /// The first of its files that can't be read, with its key.
    pub(super) fn unreadable(&self) -> Option<Refused> {
        let identity = self.tls.identity.as_ref();
        let files: [(&'static str, Option<&Path>); 4] = [
            ("registry.ca_file", self.tls.ca.as_deref()),
            ("registry.cert_file", identity.map(|i| i.cert.as_path())),
            ("registry.key_file", identity.map(|i| i.key.as_path())),
            (
                "registry.password_file",
                self.user.as_ref().map(|user| user.password_file.as_path()),
            ),
        ];
        files.into_iter().find_map(|(key, path)| {
            let path = path?;
            let error = std::fs::read(path).err()?;
            Some((key, format!("{} can't be read: {error}", path.display())))
        })
    }
}

/// Keys that only make sense for etcd.
pub(super) fn refuse_without_etcd(section: &RegistrySection) -> Result<(), Refused> {
    let given = [
        ("registry.endpoints", !section.endpoints.is_empty()),
        ("registry.username", section.username.is_some()),
        ("registry.password_file", section.password_file.is_some()),
        ("registry.ca_file", section.ca_file.is_some()),
        ("registry.cert_file", section.cert_file.is_some()),
        ("registry.key_file", section.key_file.is_some()),
    ];
    match given.into_iter().find(|(_, given)| *given) {
        Some((key, _)) => {
            let why = "is for etcd, and the registry is embedded: set registry.backend = \"etcd\"";
            Err((key, why.to_owned()))
        }
        None => Ok(()),
    }
}

/// Two keys of which neither is of use without the other.
fn both<A, B>(
    one: (&'static str, Option<A>),
    other: (&'static str, Option<B>),
) -> Result<Option<(A, B)>, Refused> {
    match (one, other) {
        ((_, Some(a)), (_, Some(b))) => Ok(Some((a, b))),
        ((_, None), (_, None)) => Ok(None),
        ((given, Some(_)), (missing, None)) | ((missing, None), (given, Some(_))) => {
            Err((given, format!("needs {missing} too")))
        }
    }
}

fn endpoints(endpoints: Vec<String>) -> Result<Vec<String>, Refused> {
    let key = "registry.endpoints";
    if endpoints.is_empty() {
        return Err((
            key,
            "etcd needs at least one, such as [\"http://10.0.0.1:2379\"]".to_owned(),
        ));
    }
    for endpoint in &endpoints {
        let rest = endpoint
            .strip_prefix("http://")
            .or_else(|| endpoint.strip_prefix("https://"));
        let uri = endpoint.parse::<http::Uri>();
        let good = uri.is_ok_and(|uri| uri.host().is_some_and(|host| !host.is_empty()));
        if rest.is_none() || !good {
            return Err((
                key,
                format!("`{endpoint}` is not like http://10.0.0.1:2379 or https://10.0.0.1:2379"),
            ));
        }
    }
    let secure = |endpoint: &&String| endpoint.starts_with("https://");
    if let Some(open) = endpoints.iter().find(|e| !secure(e))
        && let Some(https) = endpoints.iter().find(secure)
    {
        let why = format!("http and https don't mix: `{open}`, `{https}`");
        return Err((key, why));
    }
    Ok(endpoints)
}
