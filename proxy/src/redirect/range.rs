//! A VIP range: a network address and its prefix.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::RedirectError;

/// A network: the host bits of `address` are zero, as routes demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) address: IpAddr,
    pub(super) prefix: u8,
}

impl Range {
    pub(super) fn new(address: IpAddr, prefix: u8) -> Result<Self, RedirectError> {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        if !(1..=longest).contains(&prefix) {
            return Err(RedirectError::Range {
                address,
                prefix,
                longest,
            });
        }
        let address = match address {
            IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() & v4_mask(prefix)).into(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & v6_mask(prefix)).into(),
        };
        Ok(Self { address, prefix })
    }

    pub(super) fn octets(&self) -> Vec<u8> {
        match self.address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        }
    }

    pub(super) fn mask(&self) -> Vec<u8> {
        match self.address {
            IpAddr::V4(_) => v4_mask(self.prefix).to_be_bytes().to_vec(),
            IpAddr::V6(_) => v6_mask(self.prefix).to_be_bytes().to_vec(),
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

fn v4_mask(prefix: u8) -> u32 {
    u32::MAX
        .checked_shl(32u32.saturating_sub(prefix.into()))
        .unwrap_or(0)
}

fn v6_mask(prefix: u8) -> u128 {
    u128::MAX
        .checked_shl(128u32.saturating_sub(prefix.into()))
        .unwrap_or(0)
}
