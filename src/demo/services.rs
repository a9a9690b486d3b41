//! The demo's two services, and what their backends are labelled with.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use registry::resources::Applied;

use super::node::{Node, free_port};
use crate::cli::Failure;

pub const NAMESPACE: &str = "shop";

/// Which backends there are at first: service and name.
pub const BACKENDS: [(&str, &str); 4] = [
    ("web", "web-1"),
    ("web", "web-2"),
    ("web", "web-canary"),
    ("api", "api-1"),
];

/// Where the services are reached.
pub struct Services {
    pub web: SocketAddr,
    pub api: SocketAddr,
}

impl Services {
    /// Applies both. Each backend listens on one port, so the services need not name it.
    pub async fn apply(node: &Node) -> Result<Services, Failure> {
        let port = free_port(8080)?;
        let manifest = |name: &str, selector: &str| {
            format!(
                "---\napiVersion: heddle/v1\nkind: Service\n\
                 metadata: {{name: {name}, namespace: {NAMESPACE}}}\n\
                 spec:\n  selector: \"{selector}\"\n\
                 \x20 ports: [{{name: http, port: {port}, protocol: http}}]\n\
                 \x20 health: {{http: {{path: /healthz}}, interval: 1s}}\n"
            )
        };
        let both = manifest("web", WEB) + &manifest("api", API);
        let applied: Vec<Applied> = node.client.post("/v1/apply", both).await?;
        let at = |name: &str| {
            let found = applied.iter().find(|a| a.key.name.as_str() == name);
            let vip: Option<IpAddr> = found.and_then(|a| a.vips.first().copied());
            vip.map(|vip| SocketAddr::new(vip, port))
                .ok_or_else(|| Failure::Failed(format!("demo: service {name} has no virtual IP")))
        };
        Ok(Services {
            web: at("web")?,
            api: at("api")?,
        })
    }
}

/// The selectors: by set, by equality, and by absence, which keeps the canary out.
pub const WEB: &str = "app=web,!canary";
pub const API: &str = "app in (api,edge)";

/// The labels of a backend.
pub fn labels(service: &str, name: &str) -> BTreeMap<&'static str, String> {
    let mut labels = BTreeMap::from([("app", service.to_owned())]);
    if name.ends_with("-canary") {
        labels.insert("canary", "true".to_owned());
    }
    labels
}
