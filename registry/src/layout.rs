//! Which record is kept under which key.
//!
//! | key below `<prefix>/v1/` | record | written by |
//! |---|---|---|
//! | `mesh` | [`model::Mesh`] | the first node |
//! | `services/<namespace>/<name>` | [`model::Service`] | users; agents for services by labels |
//! | `endpoints/<namespace>/<name>` | [`model::endpoint::ManualEndpoint`] | users |
//! | `vips/<ip>` | [`crate::vips::VipRecord`] | whoever writes the service, in the same transaction |
//! | `slices/<namespace>/<service>/<node>` | [`model::Slice`] | the node |
//! | `findings/<namespace>/<service>/<node>` | [`model::endpoint::Findings`] | the node that checks |
//! | `nodes/<node>` | [`model::Node`] | the node |
//! | `liveness/<node>` | [`model::Liveness`] | the node, under its lease |
//! | `marks/…` | [`model::Mark`] | operators |
//! | `registrations/<node>/<id>` | [`model::workload::Registration`] | `heddle register` |

use std::net::IpAddr;
use std::sync::Arc;

use model::mark::MarkTarget;
use model::name::{Name, ServiceKey};

/// Version of this layout; another one lives beside it under another key.
pub const VERSION: &str = "v1";

/// Builds and reads keys.
#[derive(Clone, Debug)]
pub struct Keys {
    root: Arc<str>,
}

/// What a key is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// What all nodes agree on.
    Mesh,
    /// A service.
    Service(ServiceKey),
    /// An endpoint made by hand.
    Endpoint(ServiceKey),
    /// A virtual IP.
    Vip(IpAddr),
    /// A node's endpoints of a service.
    Slice(ServiceKey, Name),
    /// What a node found out about a service's endpoints that no node owns.
    Findings(ServiceKey, Name),
    /// What a node says of itself.
    Node(Name),
    /// Whether a node is alive.
    Liveness(Name),
    /// An admin mark.
    Mark(MarkTarget),
    /// A process or VM registered on a node.
    Registration(Name, Name),
}

impl Keys {
    /// Keys below `prefix`; slashes at its ends don't matter.
    pub fn new(prefix: &str) -> Self {
        Keys {
            root: format!("/{}/{VERSION}/", prefix.trim_matches('/')).into(),
        }
    }

    /// What all keys start with, slash included: what to list and watch.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// The key's full text.
    pub fn path(&self, key: &Key) -> String {
        let root = &self.root;
        match key {
            Key::Mesh => format!("{root}mesh"),
            Key::Service(k) => format!("{root}services/{k}"),
            Key::Endpoint(k) => format!("{root}endpoints/{k}"),
            Key::Vip(ip) => format!("{root}vips/{ip}"),
            Key::Slice(k, node) => format!("{root}slices/{k}/{node}"),
            Key::Findings(k, node) => format!("{root}findings/{k}/{node}"),
            Key::Node(node) => format!("{root}nodes/{node}"),
            Key::Liveness(node) => format!("{root}liveness/{node}"),
            Key::Mark(MarkTarget::Node { name }) => format!("{root}marks/node/{name}"),
            Key::Mark(MarkTarget::Workload { node, workload }) => {
                format!("{root}marks/workload/{node}/{workload}")
            }
            Key::Mark(MarkTarget::Endpoint {
                service,
                workload,
                port,
            }) => format!("{root}marks/endpoint/{service}/{workload}/{port}"),
            Key::Registration(node, id) => format!("{root}registrations/{node}/{id}"),
        }
    }

    /// What all virtual IPs' keys start with.
    pub fn vips(&self) -> String {
        format!("{}vips/", self.root)
    }

    /// What a full key is about; `None` for one that is not of this layout.
    pub fn parse(&self, path: &str) -> Option<Key> {
        let rest = path.strip_prefix(&*self.root)?;
        let mut parts = rest.split('/');
        let kind = parts.next()?;
        let parts: Vec<&str> = parts.collect();
        let name = |text: &str| Name::new(text).ok();
        let service = |ns: &str, n: &str| Some(ServiceKey::new(name(ns)?, name(n)?));
        Some(match (kind, parts.as_slice()) {
            ("mesh", []) => Key::Mesh,
            ("services", [ns, n]) => Key::Service(service(ns, n)?),
            ("endpoints", [ns, n]) => Key::Endpoint(service(ns, n)?),
            ("vips", [ip]) => Key::Vip(ip.parse().ok()?),
            ("slices", [ns, n, node]) => Key::Slice(service(ns, n)?, name(node)?),
            ("findings", [ns, n, node]) => Key::Findings(service(ns, n)?, name(node)?),
            ("nodes", [node]) => Key::Node(name(node)?),
            ("liveness", [node]) => Key::Liveness(name(node)?),
            ("marks", ["node", node]) => Key::Mark(MarkTarget::Node { name: name(node)? }),
            ("marks", ["workload", node, workload]) => Key::Mark(MarkTarget::Workload {
                node: name(node)?,
                workload: (*workload).into(),
            }),
            ("marks", ["endpoint", ns, n, workload, port]) => Key::Mark(MarkTarget::Endpoint {
                service: service(ns, n)?,
                workload: (*workload).into(),
                port: name(port)?,
            }),
            ("registrations", [node, id]) => Key::Registration(name(node)?, name(id)?),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_key_reads_back() {
        let keys = Keys::new("/heddle/");
        let n = |t: &str| Name::new(t).unwrap();
        let web = || ServiceKey::new(n("shop"), n("web"));
        for (key, path) in [
            (Key::Mesh, "/heddle/v1/mesh"),
            (Key::Service(web()), "/heddle/v1/services/shop/web"),
            (Key::Endpoint(web()), "/heddle/v1/endpoints/shop/web"),
            (
                Key::Vip("fd00::7".parse().unwrap()),
                "/heddle/v1/vips/fd00::7",
            ),
            (Key::Slice(web(), n("n1")), "/heddle/v1/slices/shop/web/n1"),
            (Key::Node(n("n1")), "/heddle/v1/nodes/n1"),
            (
                Key::Findings(web(), n("n1")),
                "/heddle/v1/findings/shop/web/n1",
            ),
            (Key::Liveness(n("n1")), "/heddle/v1/liveness/n1"),
            (
                Key::Mark(MarkTarget::Endpoint {
                    service: web(),
                    workload: "0123456789ab".into(),
                    port: n("http"),
                }),
                "/heddle/v1/marks/endpoint/shop/web/0123456789ab/http",
            ),
            (
                Key::Registration(n("n1"), n("pg")),
                "/heddle/v1/registrations/n1/pg",
            ),
        ] {
            assert_eq!(keys.path(&key), path);
            assert_eq!(keys.parse(path), Some(key));
        }
    }

    #[test]
    fn foreign_keys_are_told_apart() {
        let keys = Keys::new("heddle");
        for path in [
            "/heddle/v2/mesh",
            "/heddle/v1/services/web",
            "/heddle/v1/services/Shop/web",
            "/heddle/v1/vips/10.0.0",
            "/other/v1/mesh",
            "/heddle/v1/",
        ] {
            assert_eq!(keys.parse(path), None, "{path}");
        }
    }
}
