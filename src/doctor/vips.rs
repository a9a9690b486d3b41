//! Virtual IPs: whether their ranges are free on this machine, and whether it can lead them to the proxy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use model::IpNet;

use super::{Finding, netlink};
use crate::app::{TABLE, is_root};
use crate::config::Config;

const ABOUT: &str = "vips";

pub fn look(config: &Config) -> Vec<Finding> {
    let ranges = config.mesh().vip_ranges;
    let shown: Vec<String> = ranges.iter().map(ToString::to_string).collect();
    let shown = shown.join(", ");
    if ranges.iter().all(|r| r.addr().is_loopback()) {
        return vec![Finding::ok(
            ABOUT,
            format!("{shown} is on loopback: bound directly, for this host alone"),
        )];
    }
    if !is_root() {
        return vec![Finding::fail(
            ABOUT,
            format!("{shown} needs an nftables table and a route, and this user is not root"),
            "run heddle as root (its systemd unit does, with few capabilities), or set mesh.vip_range to one in \
             127.0.0.0/8",
        )];
    }
    let mut all = Vec::new();
    let routes = routes();
    let taken: Vec<String> = ranges
        .iter()
        .flat_map(|range| routes.iter().filter(move |(net, _)| net.overlaps(range)))
        .map(|(net, device)| format!("{net} on {device}"))
        .collect();
    all.push(match taken.as_slice() {
        [] => Finding::ok(ABOUT, format!("{shown} overlaps no route of this host")),
        some => Finding::fail(
            ABOUT,
            format!("{shown} overlaps what this host routes elsewhere: {}", some.join(", ")),
            "set mesh.vip_range to a network that nobody uses, the same on all nodes (it is stored in the registry by \
             the first one), or give Docker other networks (default-address-pools in daemon.json)",
        ),
    });
    all.push(table());
    all
}

fn table() -> Finding {
    match netlink::tables() {
        Ok(tables) if tables.iter().any(|t| t == TABLE) => match held() {
            true => Finding::ok(
                ABOUT,
                format!("the nftables table inet {TABLE} is the running node's"),
            ),
            false => Finding::warn(
                ABOUT,
                format!("an nftables table inet {TABLE} is here, and no node that holds it"),
                format!(
                    "a node that was killed leaves it, and the next start takes it over; without one: nft delete table \
                     inet {TABLE}; ip route flush table local proto {}",
                    proxy::redirect::ROUTE_PROTOCOL
                ),
            ),
        },
        Ok(_) => Finding::ok(
            ABOUT,
            "the kernel has nftables, and no other heddle's table",
        ),
        Err(error) => Finding::fail(
            ABOUT,
            format!("nftables can't be used: {error}"),
            "load the kernel's module nf_tables; in a container, give it CAP_NET_ADMIN and the host's network",
        ),
    }
}

/// Whether a process holds the table's name.
fn held() -> bool {
    let name = format!("@heddle-nft-{TABLE}");
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    sockets.lines().any(|l| l.ends_with(&name))
}

/// What this host routes, but for default routes and heddle's own: network and device.
fn routes() -> Vec<(IpNet, String)> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let mut all = routes_v4(&read("/proc/net/route"));
    all.extend(routes_v6(&read("/proc/net/ipv6_route")));
    all
}

/// Columns: interface, destination and, seven further on, mask, in the byte order of the host.
fn routes_v4(text: &str) -> Vec<(IpNet, String)> {
    let route = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let hex = |at: usize| u32::from_str_radix(words.get(at)?, 16).ok();
        let address = Ipv4Addr::from(hex(1)?.to_ne_bytes());
        let prefix = u32::from_be_bytes(hex(7)?.to_ne_bytes()).leading_ones();
        network(address.into(), prefix, words.first()?)
    };
    text.lines().skip(1).filter_map(route).collect()
}

/// Columns: destination, its prefix length, and the interface last.
fn routes_v6(text: &str) -> Vec<(IpNet, String)> {
    let route = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let address = Ipv6Addr::from(u128::from_str_radix(words.first()?, 16).ok()?);
        let prefix = u32::from_str_radix(words.get(1)?, 16).ok()?;
        network(address.into(), prefix, words.last()?)
    };
    text.lines().filter_map(route).collect()
}

fn network(address: IpAddr, prefix: u32, device: &str) -> Option<(IpNet, String)> {
    if prefix == 0 || device == "lo" {
        return None;
    }
    let net: IpNet = format!("{address}/{prefix}").parse().ok()?;
    Some((net, device.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_read_as_the_kernel_prints_them() {
        let v4 = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                  eth0\t00000000\t0102000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                  docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";
        let shown = |all: Vec<(IpNet, String)>| -> Vec<String> {
            all.iter()
                .map(|(net, device)| format!("{net} {device}"))
                .collect()
        };
        if cfg!(target_endian = "little") {
            assert_eq!(shown(routes_v4(v4)), ["172.17.0.0/16 docker0"]);
        }
        let v6 = "fd000000000000000000000000000000 40 00000000000000000000000000000000 00 \
                  00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0\n\
                  00000000000000000000000000000001 80 00000000000000000000000000000000 00 \
                  00000000000000000000000000000000 00000000 00000003 00000000 80200001       lo\n";
        assert_eq!(shown(routes_v6(v6)), ["fd00::/64 eth0"]);
        assert!(routes_v4("nonsense\nx\n").is_empty());
    }
}
