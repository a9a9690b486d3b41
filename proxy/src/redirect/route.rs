//! The any-IP routes: `ip route add local RANGE dev lo`, which makes every address of a range an
//! address of this host.
//!
//! Our routes carry a routing protocol number of their own, so that removal takes exactly what we
//! added, even after a crash, and never a route that an administrator made.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::netlink::{Message, Socket};
use super::uapi::{RTA_DST, RTA_OIF, RTA_PREFSRC};
use super::{Range, RedirectError};

/// The routing protocol number (`proto 104` in `ip route`) of the routes that heddle adds; free in
/// the kernel's and in iproute2's lists.
pub const ROUTE_PROTOCOL: u8 = 104;

/// `lo` has this index in every network namespace.
const LOOPBACK_IFINDEX: u32 = 1;

const NLM_F_CREATE: u16 = libc::NLM_F_CREATE as u16;
const NLM_F_EXCL: u16 = libc::NLM_F_EXCL as u16;

/// Adds the route of `range`, and says whether it was missing; one that is there already stays as it is.
pub(super) fn add(socket: &mut Socket, range: &Range) -> Result<bool, RedirectError> {
    let mut message = request(
        format!("add the route local {range} dev lo"),
        libc::RTM_NEWROUTE,
        NLM_F_CREATE | NLM_F_EXCL,
        range,
    );
    // Without a preferred source, a connection from this host to a VIP would come from that VIP:
    // its peer would seem to be the service itself.
    match range.address {
        IpAddr::V4(_) => message.attr(RTA_PREFSRC, &Ipv4Addr::LOCALHOST.octets()),
        IpAddr::V6(_) => message.attr(RTA_PREFSRC, &Ipv6Addr::LOCALHOST.octets()),
    };
    unless(libc::EEXIST, socket.transact(vec![message]))
}

/// Removes the route of `range` if it is one of ours.
pub(super) fn delete(socket: &mut Socket, range: &Range) -> Result<(), RedirectError> {
    let message = request(
        format!("delete the route local {range} dev lo"),
        libc::RTM_DELROUTE,
        0,
        range,
    );
    unless(libc::ESRCH, socket.transact(vec![message])).map(|_| ())
}

fn request(step: String, kind: u16, flags: u16, range: &Range) -> Message {
    // `struct rtmsg`: family, destination and source prefix, type of service, table, protocol,
    // scope, type, and 32 bits of flags.
    let family = match range.address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    };
    let header = [
        family,
        range.prefix,
        0,
        0,
        libc::RT_TABLE_LOCAL,
        ROUTE_PROTOCOL,
        libc::RT_SCOPE_HOST,
        libc::RTN_LOCAL,
        0,
        0,
        0,
        0,
    ];
    let mut message = Message::new(step, kind, flags, &header);
    message
        .attr(RTA_DST, &range.octets())
        .attr(RTA_OIF, &LOOPBACK_IFINDEX.to_ne_bytes());
    message
}

/// Whether there was anything to do: `errno` says that there was not.
fn unless(errno: i32, result: Result<(), RedirectError>) -> Result<bool, RedirectError> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.errno() == Some(errno) => Ok(false),
        Err(error) => Err(error),
    }
}
