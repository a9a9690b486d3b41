//! Whom other zones are looked up for: an open resolver is a weapon against third parties.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use model::net::IpNet;

/// The clients whose questions about other zones are forwarded.
#[derive(Debug)]
pub(crate) struct Access {
    listed: Option<Vec<IpNet>>,
    /// Without a list: this host's networks, as they were when last looked at.
    near: ArcSwap<Vec<IpNet>>,
}

impl Access {
    /// Those listed; without a list this host itself, and the networks it has an interface in that are private or
    /// belong to a bridge, as those of containers do.
    pub(crate) fn new(listed: Option<Vec<IpNet>>) -> Self {
        let access = Access {
            listed,
            near: ArcSwap::default(),
        };
        access.look_again();
        access
    }

    /// For whom it is, in words.
    pub(crate) fn in_words(&self) -> String {
        let text = |nets: &[IpNet]| {
            let nets: Vec<String> = nets.iter().map(ToString::to_string).collect();
            nets.join(", ")
        };
        match &self.listed {
            Some(listed) if listed.is_empty() => "nobody".to_owned(),
            Some(listed) => text(listed),
            None => format!("this host and {}", text(&self.near.load())),
        }
    }

    /// Takes over networks that containers got or lost.
    pub(crate) fn look_again(&self) {
        if self.listed.is_none() {
            self.near.store(Arc::new(near()));
        }
    }

    /// Whether a client that asked at the local address `asked` is one of them.
    pub(crate) fn allows(&self, client: IpAddr, asked: IpAddr) -> bool {
        let client = client.to_canonical();
        let among = |nets: &[IpNet]| nets.iter().any(|net| net.contains(client));
        match &self.listed {
            Some(listed) => among(listed),
            // A program on this host that asks a public address of this host has that address as its own.
            None => client.is_loopback() || client == asked || among(&self.near.load()),
        }
    }
}

/// The networks of this host's interfaces that belong to nobody else.
fn near() -> Vec<IpNet> {
    let mut nets = Vec::new();
    for_each_address(|interface, address, mask| {
        let Some(prefix) = prefix(mask) else { return };
        let own = IpNet::new(address, prefix);
        if private(address) || is_bridge(interface) {
            nets.extend(own);
        } else {
            let bits = if address.is_ipv4() { 32 } else { 128 };
            nets.extend(IpNet::new(address, bits));
        }
    });
    nets.sort_unstable_by_key(|net| (net.addr(), net.prefix()));
    nets.dedup();
    nets
}

fn private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

fn is_bridge(interface: &str) -> bool {
    !interface.contains('/')
        && std::path::Path::new(&format!("/sys/class/net/{interface}/bridge")).exists()
}

fn prefix(mask: IpAddr) -> Option<u8> {
    let ones = match mask {
        IpAddr::V4(v4) => v4.to_bits().leading_ones(),
        IpAddr::V6(v6) => v6.to_bits().leading_ones(),
    };
    u8::try_from(ones).ok()
}

/// Calls `seen` with each interface's name, address and mask.
fn for_each_address(mut seen: impl FnMut(&str, IpAddr, IpAddr)) {
    let mut list = std::ptr::null_mut();
    // SAFETY: `list` is a place for the pointer that the call returns.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return;
    }
    let mut next = list;
    // SAFETY: the list is valid until it is freed below, and its end is a null pointer.
    while let Some(one) = unsafe { next.as_ref() } {
        next = one.ifa_next;
        // SAFETY: a name is a C string that lives as long as the list.
        let name = unsafe { std::ffi::CStr::from_ptr(one.ifa_name) };
        let (address, mask) = (ip(one.ifa_addr), ip(one.ifa_netmask));
        if let (Ok(name), Some(address), Some(mask)) = (name.to_str(), address, mask) {
            seen(name, address, mask);
        }
    }
    // SAFETY: `list` came from getifaddrs and is freed once.
    unsafe { libc::freeifaddrs(list) };
}

/// The address in a socket address of the list; the pointer may be null.
fn ip(address: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: null, or valid as long as the list that it is of.
    let family = unsafe { address.as_ref() }?.sa_family;
    match i32::from(family) {
        libc::AF_INET => {
            // SAFETY: the family says what it points to; the list's entries are allocated for their own type.
            let v4 = unsafe { address.cast::<libc::sockaddr_in>().read_unaligned() };
            Some(Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes()).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { address.cast::<libc::sockaddr_in6>().read_unaligned() };
            Some(Ipv6Addr::from(v6.sin6_addr.s6_addr).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_list_is_the_whole_list() {
        let access = Access::new(Some(vec!["192.0.2.0/24".parse().unwrap()]));
        assert!(access.allows(ip("192.0.2.7"), ip("10.96.0.10")));
        assert!(access.allows(ip("::ffff:192.0.2.7"), ip("10.96.0.10")));
        assert!(!access.allows(ip("127.0.0.1"), ip("127.0.0.1")));
    }

    #[test]
    fn without_a_list_this_host_is_served_and_the_world_is_not() {
        let access = Access::new(None);
        assert!(access.allows(ip("127.0.0.1"), ip("127.0.0.1")));
        assert!(access.allows(ip("198.51.100.1"), ip("198.51.100.1")));
        assert!(!access.allows(ip("198.51.100.9"), ip("198.51.100.1")));
        for_each_address(|_, address, _| assert!(access.allows(address, ip("127.0.0.1"))));
    }
}
