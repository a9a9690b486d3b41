//! The node's configuration: what a user writes ([`File`]), and what is made of it ([`Config`]).
//!
//! Every key has an environment variable that overrides it: `HEDDLE_REGISTRY_ENDPOINTS` for `registry.endpoints`. Lists
//! are separated by commas there.

mod etcd;
mod file;
mod keys;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::service::CertificateFiles;
use model::strict::{self, StrictError};
use model::{DomainName, IpNet, Mesh, Name};
use registry::join::MeshWish;

pub use etcd::Etcd;
use file::{DnsSection, File, RegistrySection};

/// Where `heddle up` looks without `--config`; it need not exist.
pub const DEFAULT_PATH: &str = "/etc/heddle/heddle.toml";

/// Why the configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{}: can't be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file isn't TOML.
    #[error("{}: not TOML: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
    /// A key or value is wrong.
    #[error("{origin}: {key}: {reason}")]
    Key {
        /// The file, or the environment variable.
        origin: String,
        /// The key, such as `registry.endpoints`.
        key: String,
        /// Why.
        reason: String,
    },
}

/// Which registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// A file in the state folder.
    Embedded,
    /// An etcd cluster.
    Etcd(Etcd),
}

/// The configuration, validated and with its defaults.
#[derive(Debug, Clone)]
pub struct Config {
    /// `node.name`.
    pub node: Name,
    /// `node.zone`.
    pub zone: Option<String>,
    /// `node.address`.
    pub addresses: Vec<IpAddr>,
    /// `node.routable`.
    pub routable: Vec<IpNet>,
    /// `node.state_dir`.
    pub state_dir: PathBuf,
    /// `registry.backend` and `registry.endpoints`.
    pub backend: Backend,
    /// `registry.prefix`.
    pub prefix: String,
    /// `registry.lease_ttl`.
    pub lease_ttl: Duration,
    /// `registry.expiry_hold`.
    pub expiry_hold: Duration,
    /// `registry.collect_after`.
    pub collect_after: Duration,
    /// `docker.socket`; none when `docker.enabled` is false.
    pub docker: Option<String>,
    /// `resources.path`.
    pub resources: Option<PathBuf>,
    /// `mesh.vip_range`.
    pub vip_ranges: Option<Vec<IpNet>>,
    /// `mesh.zone`.
    pub mesh_zone: Option<String>,
    /// `proxy.workers`.
    pub workers: usize,
    /// `proxy.drain_timeout`.
    pub drain_timeout: Duration,
    /// `proxy.trusted_proxies`, `forwarded`, `via`, `request_id` and `start_traces`.
    pub forwarding: proxy::Forwarding,
    /// `dns.listen`; none: the tenth address of the first VIP range as root, else 127.0.0.1:5300.
    pub dns_listen: Option<Vec<SocketAddr>>,
    /// `dns.upstreams`.
    pub dns_upstreams: Vec<dns::Upstream>,
    /// The other keys of `dns`.
    pub dns: Dns,
    /// `admin.socket`.
    pub admin_socket: PathBuf,
    /// `admin.listen`.
    pub admin_listen: SocketAddr,
}

/// What `[dns]` says beside where to listen and whom to ask.
#[derive(Debug, Clone, Default)]
pub struct Dns {
    /// `dns.zones`, each zone once.
    pub zones: Vec<(DomainName, Vec<dns::Upstream>)>,
    /// `dns.cache_size` in bytes.
    pub cache: usize,
    /// `dns.clients`.
    pub clients: Option<Vec<IpNet>>,
    /// `dns.single_answer`.
    pub single_answer: bool,
    /// `dns.nsid`; none: the node's name.
    pub nsid: Option<String>,
    /// `dns.version`.
    pub version: Option<String>,
    /// `dns.tls_listen` and what it needs; none: nothing is served by TLS.
    pub tls: Option<DnsTls>,
    /// `dns.transfer_to`.
    pub transfer_to: Vec<IpNet>,
    /// `dns.query_log`: one query in so many; 0: none.
    pub query_log: u32,
}

/// DNS over TLS.
#[derive(Debug, Clone)]
pub struct DnsTls {
    /// `dns.tls_listen`.
    pub listen: Vec<SocketAddr>,
    /// `dns.cert_file` and `dns.key_file`.
    pub files: CertificateFiles,
}

impl Config {
    /// Reads the file (without one, [`DEFAULT_PATH`] where it exists) and the environment.
    pub fn load(path: Option<&Path>) -> Result<Config, ConfigError> {
        let (origin, text) = match path {
            Some(path) => (path, read(path)?),
            None => {
                let path = Path::new(DEFAULT_PATH);
                let text = if path.exists() {
                    read(path)?
                } else {
                    String::new()
                };
                (path, text)
            }
        };
        let config = Config::parse(origin, &text, |name| std::env::var(name).ok())?;
        if let Backend::Etcd(etcd) = &config.backend
            && let Some((key, reason)) = etcd.unreadable()
        {
            return Err(ConfigError::Key {
                origin: origin.display().to_string(),
                key: key.to_owned(),
                reason,
            });
        }
        Ok(config)
    }

    /// What this configuration says of the mesh, which the registry must agree with.
    pub fn mesh_wish(&self) -> MeshWish {
        MeshWish {
            vip_ranges: self.vip_ranges.clone(),
            zone: self.mesh_zone.clone(),
        }
    }

    /// What this configuration makes of the mesh, as long as the registry has not said what it is.
    pub fn mesh(&self) -> Mesh {
        let default = Mesh::default();
        Mesh {
            vip_ranges: self.vip_ranges.clone().unwrap_or(default.vip_ranges),
            zone: self.mesh_zone.clone().unwrap_or(default.zone),
        }
    }

    /// Makes a configuration of a text and an environment.
    pub fn parse(
        path: &Path,
        text: &str,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Config, ConfigError> {
        let table: toml::Table = toml::from_str(text).map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            reason: error.to_string().trim_end().replace('\n', " "),
        })?;
        let mut value = serde_json::to_value(table).map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        let origin = path.display().to_string();
        let overridden = keys::overlay(&mut value, env)?;
        let from = |key: &str| {
            overridden
                .iter()
                .find(|(known, _)| key.starts_with(known.as_str()))
                .map_or_else(|| origin.clone(), |(_, variable)| variable.clone())
        };
        let file: File =
            strict::from_value(value).map_err(|StrictError { path, reason, .. }| {
                ConfigError::Key {
                    origin: from(&path),
                    key: path,
                    reason,
                }
            })?;
        validate(file).map_err(|(key, reason)| ConfigError::Key {
            origin: from(key),
            key: key.to_owned(),
            reason,
        })
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })
}

type Refused = (&'static str, String);

fn validate(mut file: File) -> Result<Config, Refused> {
    let node = match &file.node.name {
        Some(name) => Name::new(name).map_err(|e| ("node.name", e.to_string()))?,
        None => host_name().ok_or_else(|| {
            let why = "this host's name is no DNS label: set node.name";
            ("node.name", why.to_owned())
        })?,
    };
    let lease_ttl = file
        .registry
        .lease_ttl
        .map_or(Duration::from_secs(10), |s| s.0);
    if lease_ttl < Duration::from_secs(1) {
        return Err(("registry.lease_ttl", "at least 1s".to_owned()));
    }
    let expiry_hold = file
        .registry
        .expiry_hold
        .map_or(Duration::from_secs(600), |s| s.0);
    let collect_after = file
        .registry
        .collect_after
        .map_or(Duration::from_secs(60), |s| s.0);
    if collect_after < Duration::from_secs(1) {
        return Err(("registry.collect_after", "at least 1s".to_owned()));
    }
    let prefix = file.registry.prefix.take();
    let backend = match file.registry.backend.as_deref() {
        None | Some("embedded") => {
            etcd::refuse_without_etcd(&file.registry)?;
            Backend::Embedded
        }
        Some("etcd") => Backend::Etcd(Etcd::new(file.registry)?),
        Some(other) => {
            return Err((
                "registry.backend",
                format!("`{other}` is neither embedded nor etcd"),
            ));
        }
    };
    let workers = match file.proxy.workers {
        Some(0) => return Err(("proxy.workers", "at least 1".to_owned())),
        Some(n) if n > 256 => return Err(("proxy.workers", "at most 256".to_owned())),
        Some(n) => n,
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let ranges = file.mesh.vip_range.map(|ranges| ranges.0);
    if let Some(ranges) = &ranges {
        check_ranges(ranges)?;
    }
    let zone = file.mesh.zone.map(|zone| check_zone(&zone)).transpose()?;
    let dns = check_dns(&file.dns)?;
    let upstreams = file
        .dns
        .upstreams
        .unwrap_or_else(|| vec!["system".to_owned()]);
    let docker = file
        .docker
        .socket
        .unwrap_or_else(|| "unix:///var/run/docker.sock".to_owned());
    if !docker.starts_with("unix://") && !docker.starts_with("http://") {
        let why = format!("`{docker}` is neither unix:///path nor http://host:port");
        return Err(("docker.socket", why));
    }
    let addresses = match file.node.address {
        Some(addresses) => addresses.0,
        None => default_addresses(&backend),
    };
    Ok(Config {
        node,
        zone: file.node.zone,
        addresses,
        routable: file.node.routable,
        state_dir: file
            .node
            .state_dir
            .unwrap_or_else(|| "/var/lib/heddle".into()),
        backend,
        prefix: prefix.unwrap_or_else(|| "/heddle".to_owned()),
        lease_ttl,
        expiry_hold,
        collect_after,
        docker: file.docker.enabled.unwrap_or(true).then_some(docker),
        resources: file.resources.path,
        vip_ranges: ranges,
        mesh_zone: zone,
        workers,
        forwarding: proxy::Forwarding {
            trusted: file.proxy.trusted_proxies,
            forwarded: file.proxy.forwarded,
            via: file.proxy.via,
            request_id: file.proxy.request_id.unwrap_or(true),
            start_traces: file.proxy.start_traces,
        },
        drain_timeout: file
            .proxy
            .drain_timeout
            .map_or(Duration::from_secs(30), |s| s.0),
        dns,
        dns_listen: file.dns.listen,
        dns_upstreams: upstreams
            .iter()
            .map(|text| {
                text.parse()
                    .map_err(|e: dns::forward::UpstreamError| ("dns.upstreams", e.to_string()))
            })
            .collect::<Result<_, _>>()?,
        admin_socket: file
            .admin
            .socket
            .unwrap_or_else(|| "/run/heddle/heddle.sock".into()),
        admin_listen: file
            .admin
            .listen
            .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 7070))),
    })
}

fn check_ranges(ranges: &[IpNet]) -> Result<(), Refused> {
    let key = "mesh.vip_range";
    if ranges.is_empty() {
        return Err((key, "at least one network".to_owned()));
    }
    for (index, range) in ranges.iter().enumerate() {
        if range.size() < 4 {
            return Err((
                key,
                format!("{range} is too small to take virtual IPs from"),
            ));
        }
        if let Some(other) = ranges[..index].iter().find(|other| other.overlaps(range)) {
            return Err((key, format!("{range} overlaps {other}")));
        }
    }
    let loopback = |range: &IpNet| range.addr().is_loopback();
    if ranges.iter().any(loopback) && !ranges.iter().all(loopback) {
        return Err((key, "loopback networks and others don't mix".to_owned()));
    }
    Ok(())
}

fn check_dns(section: &DnsSection) -> Result<Dns, Refused> {
    // One character string of a TXT record.
    const TEXT: usize = 255;
    for (key, text) in [
        ("dns.nsid", &section.nsid),
        ("dns.version", &section.version),
    ] {
        if text.as_ref().is_some_and(|text| text.len() > TEXT) {
            return Err((key, format!("at most {TEXT} bytes")));
        }
    }
    Ok(Dns {
        zones: check_dns_zones(&section.zones)?,
        cache: section
            .cache_size
            .map_or(dns::server::DEFAULT_CACHE, |size| {
                usize::try_from(size.0).unwrap_or(usize::MAX)
            }),
        clients: section.clients.clone(),
        single_answer: section.single_answer.unwrap_or(false),
        nsid: section.nsid.clone(),
        version: section.version.clone(),
        tls: check_dns_tls(section)?,
        transfer_to: check_transfer_to(&section.transfer_to)?,
        query_log: section.query_log,
    })
}

fn check_dns_tls(section: &DnsSection) -> Result<Option<DnsTls>, Refused> {
    if section.tls_listen.is_empty() {
        let files = [&section.cert_file, &section.key_file];
        if files.iter().any(|file| file.is_some()) {
            let why = "nothing is served by TLS without it, and the certificate is not used";
            return Err(("dns.tls_listen", why.to_owned()));
        }
        return Ok(None);
    }
    let needed = |key, file: &Option<String>| {
        let why = || "dns.tls_listen needs it (PEM)".to_owned();
        file.clone().ok_or_else(|| (key, why()))
    };
    Ok(Some(DnsTls {
        listen: section.tls_listen.clone(),
        files: CertificateFiles {
            cert_file: needed("dns.cert_file", &section.cert_file)?,
            key_file: needed("dns.key_file", &section.key_file)?,
        },
    }))
}

/// Networks, or addresses alone.
fn check_transfer_to(texts: &[String]) -> Result<Vec<IpNet>, Refused> {
    let refused = |text: &String, why: &str| ("dns.transfer_to", format!("`{text}` {why}"));
    texts
        .iter()
        .map(|text| {
            if let Ok(ip) = text.parse::<IpAddr>() {
                let bits = if ip.is_ipv4() { 32 } else { 128 };
                return IpNet::new(ip, bits).ok_or_else(|| refused(text, "is no address"));
            }
            text.parse()
                .map_err(|error: model::net::IpNetError| match error {
                    model::net::IpNetError::HostBits(_, net) => refused(
                        text,
                        &format!("has bits beyond its prefix: the network is {net}"),
                    ),
                    _ => refused(
                        text,
                        "is neither an address nor a network (as 192.0.2.53 and 10.0.7.0/24 are)",
                    ),
                })
        })
        .collect()
}

/// `zone=upstream`; a zone that comes again has several upstreams.
fn check_dns_zones(texts: &[String]) -> Result<Vec<(DomainName, Vec<dns::Upstream>)>, Refused> {
    let key = "dns.zones";
    let mut zones: Vec<(DomainName, Vec<dns::Upstream>)> = Vec::new();
    for text in texts {
        let Some((zone, upstream)) = text.split_once('=') else {
            let why =
                format!("`{text}` is not of the form zone=upstream, as corp.example=10.0.0.53 is");
            return Err((key, why));
        };
        let zone: DomainName = zone.trim().parse().map_err(|e| {
            let e: model::domain::DomainNameError = e;
            (key, e.to_string())
        })?;
        let upstream: dns::Upstream = upstream.trim().parse().map_err(|e| {
            let e: dns::forward::UpstreamError = e;
            (key, e.to_string())
        })?;
        match zones.iter_mut().find(|(known, _)| *known == zone) {
            Some((_, upstreams)) => upstreams.push(upstream),
            None => zones.push((zone, vec![upstream])),
        }
    }
    Ok(zones)
}

fn check_zone(zone: &str) -> Result<String, Refused> {
    let zone = zone.trim_end_matches('.').to_ascii_lowercase();
    for label in zone.split('.') {
        Name::new(label).map_err(|e| ("mesh.zone", e.to_string()))?;
    }
    if zone.len() > 128 {
        return Err((
            "mesh.zone",
            "longer than 128 characters, which leaves no room for names below it".to_owned(),
        ));
    }
    Ok(zone)
}

fn host_name() -> Option<Name> {
    let text = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Name::lossy(text.trim().split('.').next()?)
}

/// The source addresses of the default routes. Connecting a UDP socket sends nothing: it only asks for a route. Where there
/// is none, a node that is alone is at 127.0.0.1, and others are nowhere.
fn default_addresses(backend: &Backend) -> Vec<IpAddr> {
    let source = |bind: &str, far: &str| -> Option<IpAddr> {
        let socket = std::net::UdpSocket::bind(bind).ok()?;
        socket.connect(far).ok()?;
        let ip = socket.local_addr().ok()?.ip();
        (!ip.is_unspecified()).then_some(ip)
    };
    let found: Vec<IpAddr> = [
        source("0.0.0.0:0", "192.0.2.1:9"),
        source("[::]:0", "[2001:db8::1]:9"),
    ]
    .into_iter()
    .flatten()
    .collect();
    if found.is_empty() && *backend == Backend::Embedded {
        vec![IpAddr::from([127, 0, 0, 1])]
    } else {
        found
    }
}
