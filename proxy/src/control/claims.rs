//! What a service asks to be listened on.

use std::net::{IpAddr, SocketAddr};

use model::snapshot::ServiceView;
use model::{Name, Protocol};

use super::ListenerKind;

/// An address that a service's port is to be reached at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) address: SocketAddr,
    pub(super) port: Name,
    pub(super) kind: ListenerKind,
}

/// The addresses of a service's ports. Ports whose protocol this version does not speak have none.
pub(super) fn claims_of(
    view: &ServiceView,
    with_vips: bool,
    node_port_addresses: &[IpAddr],
) -> Vec<Claim> {
    let mut claims = Vec::new();
    for port in view
        .ports
        .iter()
        .filter(|port| port.protocol != Protocol::Unsupported)
    {
        let mut claim = |ip: &IpAddr, number, kind| {
            claims.push(Claim {
                address: SocketAddr::new(*ip, number),
                port: port.name.clone(),
                kind,
            });
        };
        if with_vips {
            view.vips
                .iter()
                .for_each(|ip| claim(ip, port.port, ListenerKind::Vip));
        }
        if let Some(number) = port.node_port {
            node_port_addresses
                .iter()
                .for_each(|ip| claim(ip, number, ListenerKind::NodePort));
        }
    }
    claims
}
