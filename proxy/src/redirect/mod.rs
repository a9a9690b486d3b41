//! Virtual IPs on a real host: the any-IP route and an nftables table of our own.
//!
//! Binding `VIP:port` is not enough on a host that runs Docker: a published port makes the bind
//! fail, or Docker's translation of every local address answers in our place. So every address of
//! the VIP ranges becomes local to this host ([`ROUTE_PROTOCOL`]), and one nftables table, ahead of
//! Docker's, steers new flows to them:
//!
//! - TCP to a `VIP:port` of a service goes to one listener's port. That listener must be bound to
//!   the wildcard address of its family: the VIP stays the destination, only the port changes.
//!   [`original_dst`] tells which port was dialled. The client's address is preserved.
//! - `VIP:port` pairs that a socket of this process is bound to (the node's DNS server, UDP
//!   services) are left to that socket, out of Docker's reach.
//! - Everything else in the ranges is refused at once: a reset for TCP, port unreachable for UDP.
//!
//! Only the first packet of a flow is judged: open connections outlive the removal of their service
//! and a replacement of the table. They need the redirect itself, though: a shutdown first sets no
//! services, which refuses what is new, then drains, then removes.
//!
//! The kernel is spoken to through netlink, with no helper programs, so that the binary works alone
//! in an image. Needs `CAP_NET_ADMIN` and Linux 5.9. All calls are synchronous and take effect in
//! the network namespace of the thread that called [`Redirect::install`].
//!
//! # Layout
//! - `netlink`: messages, sockets and answers
//! - `nft`: the table, with its text in nft's words; `expr`: its rules' instructions
//! - `route`: the any-IP routes
//! - `range`, `error`, `uapi`: networks, errors, and the kernel's numbers

mod error;
mod expr;
mod netlink;
mod nft;
mod range;
mod route;
#[cfg(test)]
mod tests;
mod uapi;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

use socket2::SockRef;

pub use error::RedirectError;
use netlink::Socket;
use range::Range;
pub use route::ROUTE_PROTOCOL;

const TCP: u8 = libc::IPPROTO_TCP as u8;
const UDP: u8 = libc::IPPROTO_UDP as u8;

/// What the redirect is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedirectConfig {
    /// Name of the table, in nftables' `inet` family.
    pub table: String,
    /// VIP ranges as network and prefix; host bits are ignored.
    pub ranges: Vec<(IpAddr, u8)>,
    /// Port of the listeners that take over the services' TCP connections; they are bound to the
    /// wildcard address of each family in use.
    pub port: u16,
    /// Addresses inside the ranges that sockets of this process are bound to, over UDP and TCP
    /// (the node's DNS server); they come before a service of the same address and port. An IPv6
    /// one must be bound with `IPV6_FREEBIND`: the route makes only IPv4 addresses bindable.
    pub exceptions: Vec<SocketAddr>,
}

/// The redirect, in place until [`Redirect::remove`] or drop.
#[derive(Debug)]
pub struct Redirect {
    config: RedirectConfig,
    ranges: Vec<Range>,
    netfilter: Socket,
    routing: Socket,
    /// What the table's sets hold in the kernel.
    elements: Elements,
    in_place: bool,
}

/// The contents of the table's sets, of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Elements {
    services: BTreeSet<(IpAddr, u16)>,
    /// With the transport protocol's number.
    bound: BTreeSet<(IpAddr, u8, u16)>,
}

impl Redirect {
    /// Puts the table and the routes in place, with no services yet.
    ///
    /// A table of the same name, left over by a crash, is replaced in one step: no packet sees
    /// neither or both. So are its routes.
    ///
    /// # Errors
    /// A bad configuration, or the first step that the kernel refused; nothing is left behind then.
    pub fn install(config: RedirectConfig) -> Result<Self, RedirectError> {
        let ranges = checked_ranges(&config.ranges)?;
        check_table(&config.table)?;
        if config.port == 0 {
            return Err(RedirectError::Port);
        }
        let mut redirect = Self {
            elements: Elements {
                services: BTreeSet::new(),
                bound: exceptions(&config),
            },
            config,
            ranges,
            netfilter: netfilter_socket()?,
            routing: routing_socket()?,
            in_place: false,
        };
        // Routes of a former range go while its former table still guards them.
        for range in redirect.installed_ranges()?.unwrap_or_default() {
            if !redirect.ranges.contains(&range) {
                route::delete(&mut redirect.routing, &range)?;
            }
        }
        redirect.replace_table()?;
        // From here on, drop takes back what was done when a later step fails.
        redirect.in_place = true;
        // The table comes before the routes: an address that nothing guards is never local.
        redirect.add_routes()?;
        tracing::info!(
            table = redirect.config.table,
            port = redirect.config.port,
            "vip redirect is in place"
        );
        Ok(redirect)
    }

    /// Makes `services` the TCP services: those pairs, and no others, reach the listener.
    ///
    /// One atomic change of what differs from before; open connections are not touched. Pairs
    /// outside the ranges are kept but never match. When someone else deleted the table
    /// (`nft flush ruleset`), it is put in place again.
    ///
    /// # Errors
    /// The kernel refused; then the services are as they were before the call.
    pub fn set_services(
        &mut self,
        services: &BTreeSet<(IpAddr, u16)>,
    ) -> Result<(), RedirectError> {
        self.change(Elements {
            services: services
                .iter()
                .map(|(ip, p)| (ip.to_canonical(), *p))
                .collect(),
            bound: self.elements.bound.clone(),
        })
    }

    /// Makes `sockets` the UDP pairs that sockets of this process are bound to, beside the
    /// exceptions of the configuration. Atomic as [`Redirect::set_services`].
    ///
    /// UDP is not redirected, because a datagram does not tell its listener which port it was sent
    /// to.
    ///
    /// # Errors
    /// The kernel refused; then the pairs are as they were before the call.
    pub fn set_udp_sockets(
        &mut self,
        sockets: &BTreeSet<(IpAddr, u16)>,
    ) -> Result<(), RedirectError> {
        let mut bound = exceptions(&self.config);
        bound.extend(sockets.iter().map(|(ip, p)| (ip.to_canonical(), UDP, *p)));
        self.change(Elements {
            services: self.elements.services.clone(),
            bound,
        })
    }

    /// Puts back what others removed: the table (`nft flush ruleset`, as many a firewall's restart
    /// does) or the routes. Cheap enough to be called every few seconds; `true` when the table was
    /// gone.
    ///
    /// # Errors
    /// The step that the kernel refused.
    pub fn ensure(&mut self) -> Result<bool, RedirectError> {
        let gone = self.installed_ranges()?.is_none();
        if gone {
            tracing::warn!(table = self.config.table, "vip table was deleted by others");
            self.replace_table()?;
        }
        self.add_routes()?;
        Ok(gone)
    }

    /// Takes the routes and the table away, and with them what open connections need: drain first.
    ///
    /// # Errors
    /// The first step that the kernel refused; the others are tried all the same.
    pub fn remove(mut self) -> Result<(), RedirectError> {
        self.take_away()
    }

    /// Takes away what a crash left behind: the table, the routes it was made for, and those of
    /// `ranges`, as far as they are ours. Nothing there is fine.
    ///
    /// # Errors
    /// The first step that the kernel refused; the others are tried all the same.
    pub fn cleanup(table: &str, ranges: &[(IpAddr, u8)]) -> Result<(), RedirectError> {
        let mut ranges = checked_ranges(ranges)?;
        check_table(table)?;
        let mut netfilter = netfilter_socket()?;
        if let Some(left_over) = installed_ranges(&mut netfilter, table)? {
            ranges.extend(left_over);
        }
        take_away(&mut netfilter, &mut routing_socket()?, table, &ranges)
    }

    fn change(&mut self, wanted: Elements) -> Result<(), RedirectError> {
        if wanted == self.elements {
            return Ok(());
        }
        let batch = nft::change(&self.config.table, &self.elements, &wanted);
        match self.netfilter.transact(batch.finish()) {
            Ok(()) => {}
            // The table, or an element of it, is not there any more: start over with all of it.
            Err(error) if error.errno() == Some(libc::ENOENT) => {
                tracing::warn!(table = self.config.table, "vip table was changed by others");
                self.replace_table_with(&wanted)?;
            }
            Err(error) => return Err(error),
        }
        self.elements = wanted;
        Ok(())
    }

    fn replace_table(&mut self) -> Result<(), RedirectError> {
        self.replace_table_with(&self.elements.clone())
    }

    fn replace_table_with(&mut self, elements: &Elements) -> Result<(), RedirectError> {
        let batch = nft::replace(&self.config, &self.ranges, elements);
        self.netfilter
            .transact(batch.finish())
            .map_err(RedirectError::missing_means_unsupported)
    }

    fn add_routes(&mut self) -> Result<(), RedirectError> {
        self.ranges
            .iter()
            .try_for_each(|range| route::add(&mut self.routing, range))
    }

    fn installed_ranges(&mut self) -> Result<Option<Vec<Range>>, RedirectError> {
        installed_ranges(&mut self.netfilter, &self.config.table)
    }

    fn take_away(&mut self) -> Result<(), RedirectError> {
        self.in_place = false;
        take_away(
            &mut self.netfilter,
            &mut self.routing,
            &self.config.table,
            &self.ranges,
        )
    }
}

impl Drop for Redirect {
    fn drop(&mut self) {
        if self.in_place
            && let Err(error) = self.take_away()
        {
            let table = &self.config.table;
            tracing::warn!(table, %error, "vip redirect could not be removed");
        }
    }
}

/// Where the client of a redirected connection wanted to go: VIP and port, whichever family the
/// socket has. Without conntrack's translation it is the socket's own local address; so a caller
/// needs no case for "not redirected", but looks the address up among its services and closes the
/// connection when there is none.
///
/// # Errors
/// `ENOENT` when conntrack does not know the connection, and what `getsockname` or `getsockopt`
/// (`SO_ORIGINAL_DST`, `IP6T_SO_ORIGINAL_DST`) give for a socket that is not a connected TCP one.
pub fn original_dst(socket: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let socket = SockRef::from(&socket);
    let local = socket.local_addr()?.as_socket();
    // An IPv4 client of a dual-stack socket is known to conntrack by its IPv4 address.
    let original = match local.map(|local| local.ip().to_canonical()) {
        Some(IpAddr::V4(_)) => socket.original_dst_v4()?,
        Some(IpAddr::V6(_)) => socket.original_dst_v6()?,
        None => return Err(io::Error::from(io::ErrorKind::InvalidInput)),
    };
    original
        .as_socket()
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

fn netfilter_socket() -> Result<Socket, RedirectError> {
    Socket::open(libc::NETLINK_NETFILTER, "NETLINK_NETFILTER")
}

fn routing_socket() -> Result<Socket, RedirectError> {
    Socket::open(libc::NETLINK_ROUTE, "NETLINK_ROUTE")
}

/// The ranges that the table in the kernel was made for; `None` when there is no such table.
fn installed_ranges(
    netfilter: &mut Socket,
    table: &str,
) -> Result<Option<Vec<Range>>, RedirectError> {
    match netfilter.get(nft::get(table), nft::ranges_of) {
        Ok(ranges) => Ok(Some(ranges)),
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn take_away(
    netfilter: &mut Socket,
    routing: &mut Socket,
    table: &str,
    ranges: &[Range],
) -> Result<(), RedirectError> {
    // The routes go before the table: an address that nothing guards is never local.
    let mut result = Ok(());
    for range in ranges {
        result = result.and(route::delete(routing, range));
    }
    result.and(netfilter.transact(nft::delete(table).finish()))
}

fn exceptions(config: &RedirectConfig) -> BTreeSet<(IpAddr, u8, u16)> {
    let addresses = config.exceptions.iter();
    addresses
        .flat_map(|address| {
            let ip = address.ip().to_canonical();
            [TCP, UDP].map(|protocol| (ip, protocol, address.port()))
        })
        .collect()
}

fn checked_ranges(ranges: &[(IpAddr, u8)]) -> Result<Vec<Range>, RedirectError> {
    ranges
        .iter()
        .map(|(address, prefix)| Range::new(*address, *prefix))
        .collect()
}

fn check_table(name: &str) -> Result<(), RedirectError> {
    let fits = (1..=64).contains(&name.len())
        && name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    if fits {
        Ok(())
    } else {
        Err(RedirectError::Table(name.to_owned()))
    }
}
