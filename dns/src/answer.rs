//! What a question gets, in terms of the mesh and not of the wire, so that every way of writing it shares this.

use std::net::IpAddr;
use std::sync::Arc;

use model::domain::DomainName;
use model::name::ServiceKey;

/// The labels of the zone's name server, below the zone.
const NAME_SERVER: [&str; 2] = ["ns", "dns"];

/// The answer to one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The name is in no zone of ours: upstreams may know it.
    Foreign,
    /// The name is in our zone, but nothing was ever read from the registry, so "not there" can't be said.
    Unknown,
    /// There is no such name (NXDOMAIN), nor any below it.
    NoName {
        /// How many of the question's last labels make the zone's apex, which owns the SOA.
        apex: usize,
    },
    /// The name exists, but has no record of this type (NODATA).
    NoData {
        /// As for [`Answer::NoName`].
        apex: usize,
    },
    /// The name stands for another one, which is to be looked up instead.
    Alias(DomainName),
    /// Records, in a stable order.
    Found {
        /// Owned by the name asked for.
        answers: Vec<Data>,
        /// Addresses of the names that the answers mention.
        additionals: Vec<(Host, IpAddr)>,
    },
}

/// What a record of the answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// A or AAAA.
    Address(IpAddr),
    /// SRV; the priority is 0 always.
    Srv {
        /// Share of the clients, relative to the other records'.
        weight: u16,
        /// Where the target listens.
        port: u16,
        /// Whom to connect to.
        target: Host,
    },
    /// PTR.
    Ptr(Host),
    /// CNAME.
    Alias(DomainName),
    /// NS, naming [`Host::NameServer`].
    NameServer,
    /// SOA of the name asked for.
    Authority,
    /// TXT of `dns-version`.
    Version,
    /// HINFO in place of everything, which is all that ANY gets (RFC 8482).
    Minimal,
}

/// A host name in the mesh's zone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// `<service>.<namespace>.svc.<zone>`
    Service(ServiceKey),
    /// `<hostname or dashed address>.<service>.<namespace>.svc.<zone>`
    Endpoint(ServiceKey, Arc<str>),
    /// `ns.dns.<zone>`
    NameServer,
}

impl Host {
    /// Its labels below the mesh's zone, the leftmost first.
    pub fn labels(&self) -> Vec<String> {
        let service = |key: &ServiceKey| {
            vec![
                key.name.to_string(),
                key.namespace.to_string(),
                "svc".to_owned(),
            ]
        };
        match self {
            Host::Service(key) => service(key),
            Host::Endpoint(key, label) => {
                let mut labels = service(key);
                labels.insert(0, label.to_string());
                labels
            }
            Host::NameServer => NAME_SERVER.map(str::to_owned).to_vec(),
        }
    }
}

/// The label that stands for an address: every `.` or `:` of its text is a `-`.
pub fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}
