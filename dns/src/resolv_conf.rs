//! The name servers of `/etc/resolv.conf` (resolv.conf(5)).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

const DNS_PORT: u16 = 53;

/// The name servers in the file's order. Lines that can't be read are returned as the second list; all else in the file
/// (search domains, options) is for resolvers of programs and not for a forwarder.
pub(crate) fn name_servers(text: &str) -> (Vec<SocketAddr>, Vec<&str>) {
    let mut servers = Vec::new();
    let mut unreadable = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        match words.next().and_then(server) {
            Some(server) => servers.push(server),
            None => unreadable.push(line),
        }
    }
    (servers, unreadable)
}

fn server(text: &str) -> Option<SocketAddr> {
    // The scope of a link-local address may be an interface's name, which stands for its index.
    if let Some((address, scope)) = text.split_once('%') {
        let address: Ipv6Addr = address.parse().ok()?;
        let index = scope.parse().ok().or_else(|| interface_index(scope))?;
        return Some(SocketAddrV6::new(address, DNS_PORT, 0, index).into());
    }
    let address = match text.parse().ok()? {
        // Connecting to the unspecified address reaches this host.
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        address => address,
    };
    Some(SocketAddr::new(address, DNS_PORT))
}

fn interface_index(name: &str) -> Option<u32> {
    // A path that leads elsewhere names no interface.
    if name.contains('/') || name.starts_with('.') {
        return None;
    }
    let text = std::fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn name_servers_keep_their_order_and_the_rest_is_skipped() {
        let text = "# made by hand\nsearch example.com\nnameserver 192.0.2.1\n; note\n\tnameserver\t2001:db8::1 # two\n\
                    options edns0\nnameserver\nnameserver here\nnameserver fe80::1%1\nnameserver 0.0.0.0\n";
        let (servers, unreadable) = name_servers(text);
        let servers: Vec<String> = servers.iter().map(SocketAddr::to_string).collect();
        assert_eq!(
            servers,
            [
                "192.0.2.1:53",
                "[2001:db8::1]:53",
                "[fe80::1%1]:53",
                "127.0.0.1:53"
            ]
        );
        assert_eq!(unreadable, ["nameserver", "nameserver here"]);
    }

    #[test]
    fn an_interface_is_found_by_name() {
        let (servers, _) = name_servers("nameserver fe80::1%lo");
        assert_eq!(servers.len(), 1);
        let (servers, unreadable) = name_servers("nameserver fe80::1%../lo");
        assert!(servers.is_empty() && unreadable.len() == 1);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_crash(text in "(nameserver |[0-9a-f:.% \n/-])*") {
            name_servers(&text);
        }
    }
}
