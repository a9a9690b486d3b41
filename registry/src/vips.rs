//! Which virtual IP a service gets: unique, stable, and the same again after delete and re-create where it is still free.

use std::collections::BTreeSet;
use std::hash::Hasher;
use std::net::IpAddr;

use model::name::ServiceKey;
use model::net::IpNet;
use serde::{Deserialize, Serialize};

/// Who has a virtual IP; the key names the address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VipRecord {
    /// The service.
    pub service: ServiceKey,
}

/// Addresses at the start of a range that are never given to services: the network's own, and room for the nodes' DNS
/// servers (10.96.0.10). Ranges of up to 64 addresses reserve only the first.
pub fn reserved(range: &IpNet) -> u128 {
    if range.size() > 64 { 16 } else { 1 }
}

/// A free address of each family that `ranges` has, in the order of the ranges.
///
/// The search starts where the service's name hashes to, so that a re-created service finds its address again and two
/// nodes that allocate for different services at once seldom want the same one. A family whose ranges are full is left
/// out.
pub fn choose(service: &ServiceKey, ranges: &[IpNet], taken: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
    let mut chosen: Vec<IpAddr> = Vec::new();
    for range in ranges {
        let has_family = chosen
            .iter()
            .any(|ip| ip.is_ipv4() == range.addr().is_ipv4());
        if !has_family && let Some(ip) = choose_in(service, range, taken) {
            chosen.push(ip);
        }
    }
    chosen
}

fn choose_in(service: &ServiceKey, range: &IpNet, taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let first = reserved(range);
    // The last address of an IPv4 network is its broadcast address.
    let usable = range
        .size()
        .saturating_sub(first + u128::from(range.addr().is_ipv4()));
    if usable == 0 {
        return None;
    }
    let start = u128::from(stable_hash(&service.to_string())) % usable;
    let attempts = usable.min(taken.len() as u128 + 1);
    (0..attempts)
        .filter_map(|step| range.nth(first + (start + step) % usable))
        .find(|ip| !taken.contains(ip))
}

/// FNV-1a: the same on every node and in every version, which `std`'s hasher does not promise.
fn stable_hash(text: &str) -> u64 {
    struct Fnv(u64);
    impl Hasher for Fnv {
        fn finish(&self) -> u64 {
            self.0
        }
        fn write(&mut self, bytes: &[u8]) {
            for byte in bytes {
                self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        }
    }
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    hasher.write(text.as_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(text: &str) -> ServiceKey {
        text.parse().unwrap()
    }

    #[test]
    fn a_service_finds_its_address_again() {
        let ranges = ["10.96.0.0/16".parse().unwrap()];
        let taken = BTreeSet::new();
        let first = choose(&key("shop/web"), &ranges, &taken);
        assert_eq!(first, choose(&key("shop/web"), &ranges, &taken));
        assert_ne!(first, choose(&key("shop/db"), &ranges, &taken));
    }

    #[test]
    fn one_address_per_family() {
        let ranges = [
            "10.96.0.0/24".parse().unwrap(),
            "10.97.0.0/24".parse().unwrap(),
            "fd00:96::/112".parse().unwrap(),
        ];
        let ips = choose(&key("shop/web"), &ranges, &BTreeSet::new());
        assert_eq!(ips.len(), 2);
        assert!(ips[0].is_ipv4() && ips[1].is_ipv6());
    }

    proptest! {
        #[test]
        fn a_range_is_used_to_its_last_address_and_never_twice(prefix in 24u8..=32) {
            let range = IpNet::new("10.96.0.0".parse().unwrap(), prefix).unwrap();
            let mut taken = BTreeSet::new();
            let usable = range.size().saturating_sub(reserved(&range) + 1);
            for n in 0..usable {
                let ips = choose(&key(&format!("shop/s{n}")), &[range], &taken);
                prop_assert_eq!(ips.len(), 1);
                prop_assert!(range.contains(ips[0]));
                prop_assert!(taken.insert(ips[0]));
            }
            prop_assert!(choose(&key("shop/late"), &[range], &taken).is_empty());
        }
    }
}
