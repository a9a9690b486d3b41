//! Ports and the state folder: what the node must have for itself.

use std::net::{SocketAddr, TcpListener, UdpSocket};

use model::mesh::Mesh;

use super::Finding;
use crate::config::Config;

const ABOUT: &str = "ports";

/// Whether the node's own addresses are free, or its own already.
pub fn look(config: &Config, running: bool) -> Vec<Finding> {
    let mesh = config.mesh();
    let dns = crate::app::dns_addresses(config, &mesh);
    let mut wanted = vec![("admin.listen", config.admin_listen, false)];
    wanted.extend(
        dns.into_iter()
            // One within the VIP ranges is the node's alone: nftables leads it past whoever has the port.
            .filter(|address| !in_range(&mesh, address))
            .map(|address| ("dns.listen", address, true)),
    );
    wanted
        .into_iter()
        .map(|(key, address, udp)| match bindable(address, udp) {
            _ if running => Finding::ok(ABOUT, format!("{key} {address} is the running node's")),
            Ok(()) => Finding::ok(ABOUT, format!("{key} {address} is free")),
            Err(error) => Finding::fail(
                ABOUT,
                format!("{key} {address}: {error}"),
                format!("set {key} to another address, or end who has it (ss -lntup shows who)"),
            ),
        })
        .collect()
}

fn in_range(mesh: &Mesh, address: &SocketAddr) -> bool {
    let ranges = mesh.vip_ranges.iter().filter(|r| !r.addr().is_loopback());
    ranges.into_iter().any(|r| r.contains(address.ip()))
}

fn bindable(address: SocketAddr, udp: bool) -> std::io::Result<()> {
    TcpListener::bind(address)?;
    if udp {
        UdpSocket::bind(address)?;
    }
    Ok(())
}

/// Whether the embedded registry's folder can be written to.
pub fn state_dir(config: &Config, running: bool) -> Finding {
    let path = &config.state_dir;
    let shown = path.display();
    if running {
        return Finding::ok("registry", format!("embedded, in {shown}"));
    }
    // The nearest folder that is there: the others are made at the first start.
    let there = path.ancestors().find(|p| p.exists());
    let writable = there.is_some_and(|folder| {
        let Ok(text) = std::ffi::CString::new(folder.as_os_str().as_encoded_bytes()) else {
            return false;
        };
        // SAFETY: the text ends in a NUL and outlives the call.
        unsafe { libc::access(text.as_ptr(), libc::W_OK | libc::X_OK) == 0 }
    });
    match writable {
        true => Finding::ok("registry", format!("embedded, in {shown}")),
        false => Finding::fail(
            "registry",
            format!("embedded, and {shown} can't be written by this user"),
            "run heddle as root, or set node.state_dir to a folder this user may write",
        ),
    }
}
