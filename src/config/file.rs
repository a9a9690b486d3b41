//! `heddle.toml` as it is written, section by section: each key with its type, its default in words, and what it is. All
//! else that knows the keys is made of it: the environment's overrides and the table in docs/configuration.md.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use model::IpNet;
use model::units::{Size, Span};
use serde::Deserialize;

use super::keys::{Key, Kind, Written};

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct File {
    pub(super) node: NodeSection,
    pub(super) registry: RegistrySection,
    pub(super) docker: DockerSection,
    pub(super) resources: ResourcesSection,
    pub(super) mesh: MeshSection,
    pub(super) proxy: ProxySection,
    pub(super) dns: DnsSection,
    pub(super) admin: AdminSection,
}

/// Every key there is, in the order of the file.
pub(super) fn keys() -> impl Iterator<Item = &'static Key> {
    [
        NodeSection::KEYS,
        RegistrySection::KEYS,
        DockerSection::KEYS,
        ResourcesSection::KEYS,
        MeshSection::KEYS,
        ProxySection::KEYS,
        DnsSection::KEYS,
        AdminSection::KEYS,
    ]
    .into_iter()
    .flatten()
}

/// A section: `key: type = "default"`, with what the key is as its documentation. The default is what the table shows; that
/// it is the real one, a test holds it to.
macro_rules! section {
    (
        #[doc = $about:literal]
        $name:ident, $prefix:literal {
            $($(#[doc = $what:literal])+ $key:ident: $type:ty = $default:literal,)*
        }
    ) => {
        #[doc = $about]
        #[derive(Debug, Default, Deserialize)]
        #[serde(default)]
        pub(super) struct $name {
            $($(#[doc = $what])+ pub(super) $key: $type,)*
        }

        impl $name {
            const KEYS: &[Key] = &[$(Key {
                name: concat!($prefix, ".", stringify!($key)),
                kind: <$type as Written>::KIND,
                default: $default,
                what: &[$($what),+],
            }),*];
        }
    };
}

section! {
    /// `[node]`
    NodeSection, "node" {
        /// unique among the nodes of one registry; a DNS label
        name: Option<String> = "the host name",
        /// where the node is
        zone: Option<String> = "",
        /// where other nodes reach this one; one address or a list. With etcd, a host without a default route needs
        /// it: `heddle up` ends and says so
        address: Option<OneOrMany<IpAddr>> = "source address of the default route",
        /// networks of this node's containers that other nodes can dial directly
        routable: Vec<IpNet> = "`[]`",
        /// the embedded registry and the last snapshot
        state_dir: Option<PathBuf> = "`/var/lib/heddle`",
    }
}

section! {
    /// `[registry]`
    RegistrySection, "registry" {
        /// or `etcd`
        backend: Option<String> = "`embedded`",
        /// of etcd: `["https://10.0.0.1:2379", …]`, all `https` or all `http`
        endpoints: Vec<String> = "",
        /// what all keys start with
        prefix: Option<String> = "`/heddle`",
        /// how long a silent node counts as alive; at least `1s`
        lease_ttl: Option<Span> = "`10s`",
        /// for an etcd with users
        username: Option<String> = "",
        /// a file that holds this user's password and nothing else
        password_file: Option<PathBuf> = "",
        /// PEM certificates of who signed etcd's; for `https` endpoints
        ca_file: Option<PathBuf> = "this system's authorities",
        /// PEM certificate that this node shows to an etcd with `--client-cert-auth`
        cert_file: Option<PathBuf> = "",
        /// PEM key of that certificate
        key_file: Option<PathBuf> = "",
        /// how long many nodes that are lost at once are held at most ([operations](operations.md)); `0s`: not at all
        expiry_hold: Option<Span> = "`10m`",
        /// how long all endpoints of a lost node's slice must fail until it is removed; ten times that where they
        /// can't be checked; at least `1s`
        collect_after: Option<Span> = "`60s`",
    }
}

section! {
    /// `[docker]`
    DockerSection, "docker" {
        /// `false`: containers are not looked for
        enabled: Option<bool> = "`true`",
        /// or `http://host:port`; an absent socket is waited for
        socket: Option<String> = "`unix:///var/run/docker.sock`",
    }
}

section! {
    /// `[resources]`
    ResourcesSection, "resources" {
        /// a folder of manifests, applied at start and whenever a file changes
        path: Option<PathBuf> = "",
    }
}

section! {
    /// `[mesh]`
    MeshSection, "mesh" {
        /// where virtual IPs come from; one network or a list, IPv4 and IPv6
        vip_range: Option<OneOrMany<IpNet>> = "`10.96.0.0/16`",
        /// the DNS zone
        zone: Option<String> = "`heddle.internal`",
    }
}

section! {
    /// `[proxy]`
    ProxySection, "proxy" {
        /// data threads, 1 to 256
        workers: Option<usize> = "number of cores",
        /// how long what is in flight has at shutdown
        drain_timeout: Option<Span> = "`30s`",
        /// networks of proxies whose own `X-Forwarded-*` and `Forwarded` are believed and added to; those of all
        /// other clients are replaced
        trusted_proxies: Vec<IpNet> = "`[]`",
        /// write `Forwarded` (RFC 7239) beside `X-Forwarded-For`, `-Proto` and `-Host`
        forwarded: bool = "`false`",
        /// write `Via`
        via: bool = "`false`",
        /// give requests without an `X-Request-Id` one
        request_id: Option<bool> = "`true`",
        /// give requests without a `traceparent` one, marked as sampled; one that came is always passed on
        start_traces: bool = "`false`",
    }
}

section! {
    /// `[dns]`
    DnsSection, "dns" {
        /// where another program has the port on all addresses, nftables leads an address within the VIP ranges to a
        /// free one
        listen: Option<Vec<SocketAddr>> = "the range's tenth address, port 53; without root `127.0.0.1:5300`",
        /// for every other zone; `system` is `/etc/resolv.conf`
        upstreams: Option<Vec<String>> = "`[\"system\"]`",
        /// upstreams for the names at and below a zone: `["corp.example=10.0.0.53"]`; a zone that comes again has
        /// several
        zones: Vec<String> = "`[]`",
        /// upstreams' answers kept at most
        cache_size: Option<Size> = "`16MiB`",
        /// networks whose questions about other zones are forwarded; all others get REFUSED
        clients: Option<Vec<IpNet>> = "this host, its private networks and its bridges",
        /// of several addresses give one, each in its turn: resolvers re-sort them otherwise
        single_answer: Option<bool> = "`false`",
        /// what clients that ask who answers are told (RFC 5001, `id.server`); empty: nothing
        nsid: Option<String> = "the node's name",
        /// what `version.bind` says; without it such questions are refused
        version: Option<String> = "",
        /// where DNS is served over TLS (RFC 7858): `["192.0.2.2:853"]`; needs both files
        /// ([DNS](dns.md#dns-over-tls))
        tls_listen: Vec<SocketAddr> = "`[]`",
        /// PEM certificate, with those between it and its authority; read again when it changes
        cert_file: Option<String> = "",
        /// PEM key of that certificate
        key_file: Option<String> = "",
        /// addresses and networks that may copy the zone (AXFR): `["192.0.2.53"]` ([DNS](dns.md#secondaries))
        transfer_to: Vec<String> = "`[]`",
        /// log one query in so many; 0: none
        query_log: u32 = "`0`",
    }
}

section! {
    /// `[admin]`
    AdminSection, "admin" {
        /// reads and writes, mode 0660
        socket: Option<PathBuf> = "`/run/heddle/heddle.sock`",
        /// reads only
        listen: Option<SocketAddr> = "`127.0.0.1:7070`",
    }
}

/// A value, or a list of them.
#[derive(Debug, Clone)]
pub(super) struct OneOrMany<T>(pub(super) Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Either<T> {
            type Value = OneOrMany<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                T::deserialize(serde::de::value::StrDeserializer::new(text))
                    .map(|one| OneOrMany(vec![one]))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut seq: A,
            ) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some(one) = seq.next_element()? {
                    all.push(one);
                }
                Ok(OneOrMany(all))
            }
        }
        deserializer.deserialize_any(Either(std::marker::PhantomData))
    }
}

impl<T> Written for OneOrMany<T> {
    const KIND: Kind = Kind::List;
}
