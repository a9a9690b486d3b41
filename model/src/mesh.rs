//! What all nodes must agree on, kept once in the registry.

use serde::{Deserialize, Serialize};

use crate::net::IpNet;

/// Seeded by the first node; a node whose configuration contradicts it refuses to join.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mesh {
    /// Where virtual IPs come from, IPv4 and IPv6; a service gets one of each range's family.
    pub vip_ranges: Vec<IpNet>,
    /// The DNS zone, lower-case without a dot at its end: `heddle.internal`.
    pub zone: String,
}

impl Default for Mesh {
    fn default() -> Self {
        Mesh {
            vip_ranges: vec!["10.96.0.0/16".parse().expect("a valid network")],
            zone: "heddle.internal".to_owned(),
        }
    }
}
