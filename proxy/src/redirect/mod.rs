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
//! in an image. Needs `CAP_NET_ADMIN` and Linux 5.10. All calls are synchronous and take effect in
//! the network namespace of the thread that called [`Redirect::install`].
//!
//! # Layout
//! - `netlink`: messages, sockets and answers
//! - `nft`: the table, with its text in nft's words; `expr`: its rules' instructions
//! - `look`: what the kernel holds of it; `lock`: that no other process has it
//! - `route`: the any-IP routes; `original`: where a connection was dialled
//! - `range`, `error`, `uapi`: networks, errors, and the kernel's numbers

mod error;
mod expr;
mod lock;
mod look;
mod netlink;
mod nft;
mod original;
mod range;
mod route;
#[cfg(test)]
mod tests;
mod uapi;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

pub use error::RedirectError;
use lock::Lock;
use look::{Rules, Table};
use netlink::Socket;
pub use original::original_dst;
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
    /// Exceptions whose socket has another port: address, port, and the socket's port.
    moved: Vec<(Range, u16, u16)>,
    netfilter: Socket,
    routing: Socket,
    /// What the table's sets hold in the kernel.
    elements: Elements,
    rules: Rules,
    /// The generation of nftables in which the table was last found whole.
    whole_in: Option<u32>,
    /// A change met a table that others had changed, and replaced it; to be told by [`Redirect::ensure`].
    mended: bool,
    in_place: bool,
    _lock: Lock,
}

/// What had to be put back since the last [`Redirect::ensure`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repairs {
    /// Whether the table was gone, or differed from what it should be.
    pub table: bool,
    /// How many routes were gone.
    pub routes: usize,
}

/// The contents of the table's sets, of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Elements {
    services: BTreeSet<(IpAddr, u16)>,
    /// With the transport protocol's number.
    bound: BTreeSet<(IpAddr, u8, u16)>,
}

impl Redirect {
    /// Puts the table and the routes in place, leading `services` to the listener.
    ///
    /// A table of ours, left over by a crash, is replaced in one step: no packet sees neither or
    /// both. So are its routes.
    ///
    /// # Errors
    /// A bad configuration, a table of the same name that is another process's or was not made by
    /// us, or the first step that the kernel refused; nothing is changed or left behind then.
    pub fn install(
        config: RedirectConfig,
        services: &BTreeSet<(IpAddr, u16)>,
    ) -> Result<Self, RedirectError> {
        let ranges = checked_ranges(&config.ranges)?;
        check_table(&config.table)?;
        if config.port == 0 {
            return Err(RedirectError::Port);
        }
        let mut redirect = Self {
            _lock: Lock::take(&config.table)?,
            elements: Elements {
                services: canonical(services),
                bound: exceptions(&config),
            },
            config,
            ranges,
            moved: Vec::new(),
            netfilter: netfilter_socket()?,
            routing: routing_socket()?,
            rules: Rules::new(),
            whole_in: None,
            mended: false,
            in_place: false,
        };
        // Routes of a former range go while its former table still guards them.
        if let Table::Ours(former) = redirect.table()? {
            for range in former.iter().filter(|r| !redirect.ranges.contains(r)) {
                route::delete(&mut redirect.routing, range)?;
            }
        }
        redirect.replace_table()?;
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
            services: canonical(services),
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

    /// Addresses that are left to sockets of this process, as configured.
    #[must_use]
    pub fn exceptions(&self) -> &[SocketAddr] {
        &self.config.exceptions
    }

    /// Leads exceptions to another port of their address, over UDP and TCP, and all others to their own: for a socket
    /// that could not have its port because another process has it on all addresses.
    ///
    /// # Errors
    /// The kernel refused; then the exceptions are as they were before the call.
    pub fn move_exceptions(&mut self, moved: &[(SocketAddr, u16)]) -> Result<(), RedirectError> {
        let whole = |address: IpAddr| Range::new(address, if address.is_ipv4() { 32 } else { 128 });
        let moved = moved
            .iter()
            .map(|(from, at)| Ok((whole(from.ip().to_canonical())?, from.port(), *at)))
            .collect::<Result<Vec<_>, RedirectError>>()?;
        let before = std::mem::replace(&mut self.moved, moved);
        self.replace_table().inspect_err(|_| self.moved = before)
    }

    /// Puts back what others removed or changed: the table (`nft flush ruleset`, as many a
    /// firewall's restart does), rules or elements of it, or the routes.
    ///
    /// Cheap enough to be called every few seconds: the table is read only after something in
    /// nftables changed.
    ///
    /// # Errors
    /// The step that the kernel refused, or that the name has become somebody else's table.
    pub fn ensure(&mut self) -> Result<Repairs, RedirectError> {
        if !self.is_whole()? {
            tracing::warn!(
                table = self.config.table,
                "vip table was changed or deleted by others"
            );
            self.replace_table()?;
            self.mended = true;
        }
        let routes = self.add_routes()?;
        if routes > 0 {
            tracing::warn!(routes, "vip routes were deleted by others");
        }
        let table = std::mem::take(&mut self.mended);
        Ok(Repairs { table, routes })
    }

    /// Takes the routes and the table away, and with them what open connections need: drain first.
    ///
    /// # Errors
    /// The first step that the kernel refused; the others are tried all the same.
    pub fn remove(mut self) -> Result<(), RedirectError> {
        self.take_away()
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
                self.mended = true;
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
        self.table()?;
        let batch = nft::replace(&self.config, &self.ranges, &self.moved, elements);
        self.netfilter
            .transact(batch.finish())
            .map_err(RedirectError::missing_means_unsupported)?;
        // From here on, drop takes back what was done when a later step fails.
        self.in_place = true;
        self.whole_in = None;
        self.rules = look::rules(&mut self.netfilter, &self.config.table)?;
        Ok(())
    }

    /// Whether the table is as it should be. One that changes while it is read is for the next time.
    fn is_whole(&mut self) -> Result<bool, RedirectError> {
        let generation = look::generation(&mut self.netfilter)?;
        if self.whole_in == Some(generation) {
            return Ok(true);
        }
        if let Table::Missing = self.table()? {
            return Ok(false);
        }
        match self.is_unchanged() {
            Ok(true) => self.whole_in = Some(generation),
            Ok(false) => return Ok(false),
            Err(error) if error.errno() == Some(libc::ENOENT) => return Ok(false),
            Err(error) if error.errno() == Some(libc::EINTR) => {}
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    fn is_unchanged(&mut self) -> Result<bool, RedirectError> {
        let (netfilter, table) = (&mut self.netfilter, &self.config.table);
        Ok(look::rules(netfilter, table)? == self.rules
            && look::sets(netfilter, table)? == nft::keys(&self.elements))
    }

    fn add_routes(&mut self) -> Result<usize, RedirectError> {
        let mut added = 0;
        for range in &self.ranges {
            added += usize::from(route::add(&mut self.routing, range)?);
        }
        Ok(added)
    }

    /// The table of our name, unless it is somebody else's.
    fn table(&mut self) -> Result<Table, RedirectError> {
        match look::table(&mut self.netfilter, &self.config.table)? {
            Table::Foreign => Err(RedirectError::Foreign(self.config.table.clone())),
            table => Ok(table),
        }
    }

    fn take_away(&mut self) -> Result<(), RedirectError> {
        self.in_place = false;
        // The routes go before the table: an address that nothing guards is never local.
        let mut result = Ok(());
        for range in &self.ranges {
            result = result.and(route::delete(&mut self.routing, range));
        }
        let deleted = match self.table() {
            Ok(Table::Missing) => Ok(()),
            Ok(_) => {
                let batch = nft::delete(&self.config.table);
                self.netfilter.transact(batch.finish())
            }
            Err(error) => Err(error),
        };
        result.and(deleted)
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

fn netfilter_socket() -> Result<Socket, RedirectError> {
    Socket::open(libc::NETLINK_NETFILTER, "NETLINK_NETFILTER")
}

fn routing_socket() -> Result<Socket, RedirectError> {
    Socket::open(libc::NETLINK_ROUTE, "NETLINK_ROUTE")
}

fn canonical(pairs: &BTreeSet<(IpAddr, u16)>) -> BTreeSet<(IpAddr, u16)> {
    let canonical = |(ip, port): &(IpAddr, u16)| (ip.to_canonical(), *port);
    pairs.iter().map(canonical).collect()
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
