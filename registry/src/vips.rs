//! Which virtual IP a service gets: unique, stable, and the same again after delete and re-create where it is still free.

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
/// servers (10.96.0.10). Ranges of up to 64 addresses reserve only the first, and the DNS server's.
pub fn reserved(range: &IpNet) -> u128 {
    if range.size() > 64 { 16 } else { 1 }
}

/// Where in a range the nodes' DNS servers are.
const DNS: u128 = 10;

/// How many addresses of a range services may have. One /64 and more saturate.
pub fn capacity(range: &IpNet) -> u128 {
    let dns = u128::from((reserved(range)..=last(range)).contains(&DNS));
    (last(range) + 1)
        .saturating_sub(reserved(range))
        .saturating_sub(dns)
}

/// The place of the last address that is not an IPv4 network's broadcast address.
fn last(range: &IpNet) -> u128 {
    let past = 1 + u128::from(range.addr().is_ipv4());
    range.size().saturating_sub(past).min(u128::MAX - 1)
}

/// Why no service may have `ip`; `None` where one may.
pub fn unusable(ip: IpAddr, ranges: &[IpNet]) -> Option<String> {
    let Some(range) = ranges.iter().find(|range| range.contains(ip)) else {
        return Some(format!(
            "it lies outside of mesh.vip_range, which is {}",
            joined(ranges)
        ));
    };
    let place = |n| range.nth(n);
    let (first, last) = (place(reserved(range)), place(last(range)));
    if first.is_some_and(|first| ip >= first)
        && last.is_some_and(|last| ip <= last)
        && place(DNS) != Some(ip)
    {
        return None;
    }
    let services_get = match (first, last) {
        (Some(first), Some(last)) if first <= last => {
            let dns = place(DNS).filter(|dns| *dns >= first && *dns <= last);
            let save = dns.map(|dns| format!(", save the DNS servers' {dns}"));
            format!("services get {first} to {last}{}", save.unwrap_or_default())
        }
        _ => "the range is too small for any service".to_owned(),
    };
    Some(format!("it is reserved in {range}: {services_get}"))
}

/// Networks in one line.
pub(crate) fn joined(ranges: &[IpNet]) -> String {
    let all: Vec<String> = ranges.iter().map(ToString::to_string).collect();
    all.join(", ")
}

/// The addresses of a range in the order in which a service tries them, each once.
///
/// They start where the service's name hashes to, so that a re-created service finds its address again and two nodes that
/// allocate for different services at once seldom want the same one.
pub fn candidates(service: &ServiceKey, range: &IpNet) -> impl Iterator<Item = IpAddr> + use<> {
    let range = *range;
    let first = reserved(&range);
    let places = (last(&range) + 1).saturating_sub(first);
    let start = u128::from(stable_hash(&service.to_string()))
        .checked_rem(places)
        .unwrap_or(0);
    (0..places)
        .map(move |step| first + (start + step) % places)
        .filter(|place| *place != DNS)
        .filter_map(move |place| range.nth(place))
}

/// The first address of a range that the service tries and nobody has.
pub fn choose(
    service: &ServiceKey,
    range: &IpNet,
    is_taken: impl Fn(&IpAddr) -> bool,
) -> Option<IpAddr> {
    candidates(service, range).find(|ip| !is_taken(ip))
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
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    fn key(text: &str) -> ServiceKey {
        text.parse().unwrap()
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_service_finds_its_address_again() {
        let range = net("10.96.0.0/16");
        let first = choose(&key("shop/web"), &range, |_| false);
        assert_eq!(first, choose(&key("shop/web"), &range, |_| false));
        assert_ne!(first, choose(&key("shop/db"), &range, |_| false));
    }

    #[test]
    fn what_is_unusable_says_why() {
        let ranges = [
            net("10.96.0.0/24"),
            net("10.97.0.0/28"),
            net("fd00:96::/112"),
        ];
        for (ip, reason) in [
            (
                "10.96.5.5",
                "outside of mesh.vip_range, which is 10.96.0.0/24, 10.97.0.0/28",
            ),
            (
                "10.96.0.10",
                "reserved in 10.96.0.0/24: services get 10.96.0.16 to 10.96.0.254",
            ),
            ("10.96.0.255", "reserved in 10.96.0.0/24"),
            (
                "10.97.0.0",
                "reserved in 10.97.0.0/28: services get 10.97.0.1 to 10.97.0.14",
            ),
            ("10.97.0.10", "reserved in 10.97.0.0/28"),
            ("fd00:96::f", "reserved in fd00:96::/112"),
        ] {
            let told = unusable(ip.parse().unwrap(), &ranges).expect(ip);
            assert!(told.contains(reason), "{ip}: {told}");
        }
        for ip in ["10.96.0.16", "10.96.0.254", "10.97.0.14", "fd00:96::ffff"] {
            assert_eq!(unusable(ip.parse().unwrap(), &ranges), None, "{ip}");
        }
    }

    proptest! {
        #[test]
        fn a_range_is_used_to_its_last_address_and_never_twice(prefix in 24u8..=32, v6 in any::<bool>()) {
            let range = if v6 {
                IpNet::new("fd00:96::".parse().unwrap(), prefix + 96).unwrap()
            } else {
                IpNet::new("10.96.0.0".parse().unwrap(), prefix).unwrap()
            };
            let mut taken = BTreeSet::new();
            for n in 0..capacity(&range) {
                let ip = choose(&key(&format!("shop/s{n}")), &range, |ip| taken.contains(ip)).unwrap();
                prop_assert!(range.contains(ip));
                prop_assert_eq!(unusable(ip, &[range]), None);
                prop_assert!(taken.insert(ip));
            }
            prop_assert_eq!(choose(&key("shop/late"), &range, |ip| taken.contains(ip)), None);
        }

        #[test]
        fn every_address_tried_is_usable_in_ranges_of_any_size(
            prefix in 0u8..=128,
            value in any::<u128>(),
            name in "[a-z]{1,10}",
        ) {
            let range = IpNet::new(IpAddr::V6(value.into()), prefix).unwrap();
            let service = key(&format!("shop/{name}"));
            let tried: Vec<IpAddr> = candidates(&service, &range).take(20).collect();
            prop_assert_eq!(tried.len() as u128, capacity(&range).min(20));
            prop_assert_eq!(tried.iter().collect::<BTreeSet<_>>().len(), tried.len());
            for ip in tried {
                prop_assert_eq!(unusable(ip, &[range]), None);
            }
        }
    }
}
