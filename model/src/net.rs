//! IP networks in CIDR notation.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An IPv4 or IPv6 network, such as `10.96.0.0/16`. Host bits are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpNet {
    addr: IpAddr,
    prefix: u8,
}

/// Why a text is not a network.
#[derive(Debug, thiserror::Error)]
pub enum IpNetError {
    /// No `/`, or not an address before it, or not a prefix length behind it.
    #[error("`{0}` is not a network like 10.96.0.0/16 or fd00:96::/112")]
    Syntax(String),
    /// Bits are set behind the prefix.
    #[error("`{0}` has bits set behind its prefix: the network is {1}")]
    HostBits(String, IpNet),
}

fn bits(addr: IpAddr) -> (u128, u8) {
    match addr {
        IpAddr::V4(v4) => (u128::from(u32::from(v4)), 32),
        IpAddr::V6(v6) => (u128::from(v6), 128),
    }
}

impl IpNet {
    /// The network of `addr` with `prefix` bits; host bits are cut off. `None` when the prefix is too long.
    pub fn new(addr: IpAddr, prefix: u8) -> Option<Self> {
        let (value, width) = bits(addr);
        if prefix > width {
            return None;
        }
        let host = width - prefix;
        let kept = if host == 128 {
            0
        } else {
            value >> host << host
        };
        let net = IpNet { addr, prefix };
        Some(IpNet {
            addr: net.join(kept),
            prefix,
        })
    }

    fn join(&self, value: u128) -> IpAddr {
        match self.addr {
            IpAddr::V4(_) => IpAddr::V4(u32::try_from(value & 0xffff_ffff).unwrap_or(0).into()),
            IpAddr::V6(_) => IpAddr::V6(value.into()),
        }
    }

    /// The network's first address.
    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    /// Number of leading bits that make the network.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether `ip` is in this network. IPv4-mapped IPv6 addresses are not in IPv4 networks.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.addr.is_ipv4() == ip.is_ipv4()
            && IpNet::new(ip, self.prefix).is_some_and(|net| net.addr == self.addr)
    }

    /// Whether the two share an address.
    pub fn overlaps(&self, other: &IpNet) -> bool {
        self.contains(other.addr) || other.contains(self.addr)
    }

    /// How many addresses there are, saturating.
    pub fn size(&self) -> u128 {
        let (_, width) = bits(self.addr);
        1u128
            .checked_shl(u32::from(width - self.prefix))
            .unwrap_or(u128::MAX)
    }

    /// The `index`th address; `None` past the end.
    pub fn nth(&self, index: u128) -> Option<IpAddr> {
        (index < self.size()).then(|| self.join(bits(self.addr).0 + index))
    }
}

impl fmt::Display for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

impl FromStr for IpNet {
    type Err = IpNetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let syntax = || IpNetError::Syntax(text.to_owned());
        let (addr, prefix) = text.split_once('/').ok_or_else(syntax)?;
        let addr: IpAddr = addr.parse().map_err(|_| syntax())?;
        let prefix: u8 = prefix.parse().map_err(|_| syntax())?;
        let net = IpNet::new(addr, prefix).ok_or_else(syntax)?;
        if net.addr == addr {
            Ok(net)
        } else {
            Err(IpNetError::HostBits(text.to_owned(), net))
        }
    }
}

impl Serialize for IpNet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for IpNet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_index_below_the_size_is_an_address_of_the_network_and_none_above(
            v4 in any::<bool>(),
            value in any::<u128>(),
            prefix in 0u8..=128,
            at in any::<u128>(),
        ) {
            let (ip, prefix) = if v4 {
                (IpAddr::V4((value as u32).into()), prefix % 33)
            } else {
                (IpAddr::V6(value.into()), prefix)
            };
            let net = IpNet::new(ip, prefix).unwrap();
            prop_assert!(net.contains(ip));
            prop_assert_eq!(net.nth(0), Some(net.addr()));
            let at = at % net.size();
            let there = net.nth(at).unwrap();
            prop_assert!(net.contains(there));
            prop_assert_eq!(there == net.addr(), at == 0);
            if net.size() < u128::MAX {
                prop_assert_eq!(net.nth(net.size()), None);
            }
            prop_assert_eq!(net.to_string().parse::<IpNet>().unwrap(), net);
        }
    }

    #[test]
    fn a_network_of_one_address_holds_just_that() {
        for text in ["192.0.2.7/32", "fd00::7/128"] {
            let net: IpNet = text.parse().unwrap();
            assert_eq!(net.size(), 1);
            assert_eq!(net.nth(0), Some(net.addr()));
            assert_eq!(net.nth(1), None);
        }
    }

    #[test]
    fn contains_only_its_own_addresses() {
        let net: IpNet = "10.96.0.0/16".parse().unwrap();
        assert!(net.contains("10.96.255.255".parse().unwrap()));
        assert!(!net.contains("10.97.0.0".parse().unwrap()));
        assert!(!net.contains("::ffff:10.96.0.1".parse().unwrap()));
        let all: IpNet = "::/0".parse().unwrap();
        assert!(all.contains("fe80::1".parse().unwrap()));
    }

    #[test]
    fn host_bits_are_named_with_the_network_meant() {
        let error = "10.96.0.1/16".parse::<IpNet>().unwrap_err().to_string();
        assert!(error.contains("10.96.0.0/16"), "{error}");
        assert!("10.96.0.0/33".parse::<IpNet>().is_err());
    }

    #[test]
    fn addresses_are_counted_and_indexed() {
        let net: IpNet = "192.0.2.0/30".parse().unwrap();
        assert_eq!(net.size(), 4);
        assert_eq!(net.nth(3), Some("192.0.2.3".parse().unwrap()));
        assert_eq!(net.nth(4), None);
        let v6: IpNet = "fd00::/112".parse().unwrap();
        assert_eq!(v6.nth(65_535), Some("fd00::ffff".parse().unwrap()));
    }
}
