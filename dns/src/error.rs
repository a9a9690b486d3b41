//! Why the DNS server can't start.

use std::fmt;
use std::io;
use std::net::SocketAddr;

/// Why [`Server::bind`](crate::Server::bind) failed.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// A listener could not be made.
    #[error("can't listen for DNS on {address} ({transport}; {})", mend(.source, *.transport))]
    Bind {
        /// As configured.
        address: SocketAddr,
        /// UDP, TCP or TLS.
        transport: Transport,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// What carries a DNS message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// One message per datagram.
    Udp,
    /// Messages with a length of two bytes before each (RFC 7766).
    Tcp,
    /// As TCP, encrypted (RFC 7858).
    Tls,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
            Transport::Tls => "tls",
        })
    }
}

/// What the user can do about it.
fn mend(error: &io::Error, transport: Transport) -> &'static str {
    if transport == Transport::Tls {
        return match error.kind() {
            io::ErrorKind::AddrInUse => {
                "another program serves this address: stop it, or choose another address in dns.tls_listen"
            }
            _ => "choose another address in dns.tls_listen",
        };
    }
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another program serves this address, often systemd-resolved or dnsmasq: stop it, or choose another \
             address in dns.listen"
        }
        io::ErrorKind::AddrNotAvailable => {
            "this host has no such address: choose one that it has in dns.listen, or 127.0.0.1:5300"
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need root or CAP_NET_BIND_SERVICE: run as root, or set dns.listen to 127.0.0.1:5300"
        }
        _ => "choose another address in dns.listen",
    }
}
