//! Which of its networks a container is dialled on: an explicit choice, a stated order, or a visible problem; never a guess.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use bollard::models::EndpointSettings;
use model::labels::Labels;

use crate::labels::{COMPOSE_PROJECT, NETWORK, shown};

/// Drivers by what containers call their networks: the network's id with Docker, where a name may come back with another
/// driver, and its name with Podman.
pub(super) type Drivers = HashMap<String, String>;

/// What [`Drivers`] knows a container's network by.
pub(super) fn driver_key<'a>(name: &'a str, settings: &'a EndpointSettings) -> &'a str {
    match settings.network_id.as_deref() {
        None | Some("") => name,
        Some(id) => id,
    }
}

/// The network that was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    /// One per family at most, IPv4 first.
    pub(super) addresses: Vec<IpAddr>,
    /// The network and why it was chosen.
    pub(super) text: String,
}

/// Whether the host can dial containers on a network of this driver. With macvlan and ipvlan the kernel keeps the host and
/// its containers apart, and overlay networks are not reachable from outside of them.
fn dialable(driver: &str) -> bool {
    !matches!(
        driver,
        "macvlan" | "ipvlan" | "overlay" | "null" | "none" | "host" | ""
    )
}

/// The network of a container with these labels.
pub(super) fn choose(
    networks: &HashMap<String, EndpointSettings>,
    labels: &Labels,
    drivers: &Drivers,
) -> Result<Choice, String> {
    let all: BTreeMap<&str, &EndpointSettings> = networks
        .iter()
        .map(|(name, s)| (name.as_str(), s))
        .collect();
    let driver = |name: &str| {
        let key = all.get(name).map(|settings| driver_key(name, settings));
        let driver = key.and_then(|key| drivers.get(key));
        driver.map_or("", String::as_str)
    };
    if let Some(wanted) = labels.get(NETWORK) {
        let Some(settings) = all.get(wanted.as_str()) else {
            let names: Vec<&str> = all.keys().copied().collect();
            return Err(format!(
                "label {NETWORK}={}: it is not on that network, but on {}",
                shown(wanted),
                listed(&names)
            ));
        };
        if !dialable(driver(wanted)) {
            return Err(format!(
                "label {NETWORK}={}: this host can't dial a network of driver {}",
                shown(wanted),
                unknown_if_empty(driver(wanted))
            ));
        }
        return chosen(wanted, settings, &format!("label {NETWORK}"));
    }
    let candidates: Vec<&str> = all
        .keys()
        .copied()
        .filter(|n| dialable(driver(n)))
        .collect();
    let compose = labels.get(COMPOSE_PROJECT).map(|p| format!("{p}_default"));
    let (name, why) = match (candidates.as_slice(), compose) {
        ([], _) if all.is_empty() => return Err("it is on no network".to_owned()),
        ([], _) => {
            let names: Vec<String> = all
                .keys()
                .map(|name| format!("{name} ({})", unknown_if_empty(driver(name))))
                .collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            return Err(format!(
                "it is on no network that this host can dial: {}",
                listed(&names)
            ));
        }
        ([only], _) => (*only, "the only one this host can dial".to_owned()),
        (several, Some(default)) if several.contains(&default.as_str()) => {
            let name = several
                .iter()
                .find(|n| **n == default)
                .unwrap_or(&several[0]);
            (*name, "the Compose project's default".to_owned())
        }
        (several, _) => (several[0], format!("first by name of {}", listed(several))),
    };
    let Some(settings) = all.get(name) else {
        return Err("it is on no network".to_owned());
    };
    chosen(name, settings, &why)
}

fn chosen(name: &str, settings: &EndpointSettings, why: &str) -> Result<Choice, String> {
    let read = |text: &Option<String>| text.as_deref()?.parse::<IpAddr>().ok();
    let addresses: Vec<IpAddr> = [&settings.ip_address, &settings.global_ipv6_address]
        .into_iter()
        .filter_map(read)
        .filter(|ip| !ip.is_unspecified())
        .collect();
    if addresses.is_empty() {
        return Err(format!("it has no address on network {}", shown(name)));
    }
    Ok(Choice {
        addresses,
        text: format!("{} ({why})", shown(name)),
    })
}

fn unknown_if_empty(driver: &str) -> &str {
    if driver.is_empty() { "unknown" } else { driver }
}

fn listed(names: &[&str]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        shown(&names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(all: &[(&str, &str, &str)]) -> HashMap<String, EndpointSettings> {
        all.iter()
            .map(|(name, v4, v6)| {
                let settings = EndpointSettings {
                    ip_address: Some((*v4).to_owned()),
                    global_ipv6_address: Some((*v6).to_owned()),
                    ..EndpointSettings::default()
                };
                ((*name).to_owned(), settings)
            })
            .collect()
    }

    fn drivers() -> Drivers {
        [
            ("bridge", "bridge"),
            ("front", "bridge"),
            ("shop_default", "bridge"),
            ("lan", "macvlan"),
            ("swarm", "overlay"),
            ("none", "null"),
        ]
        .into_iter()
        .map(|(n, d)| (n.to_owned(), d.to_owned()))
        .collect()
    }

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn the_label_decides_else_compose_else_the_first_by_name() {
        let three = on(&[
            ("shop_default", "172.20.0.2", ""),
            ("bridge", "172.17.0.2", ""),
            ("front", "172.21.0.2", ""),
        ]);
        for (pairs, ip, why) in [
            (
                vec![("heddle.network", "front")],
                "172.21.0.2",
                "front (label heddle.network)",
            ),
            (
                vec![(COMPOSE_PROJECT, "shop")],
                "172.20.0.2",
                "shop_default (the Compose project's default)",
            ),
            (
                vec![],
                "172.17.0.2",
                "bridge (first by name of bridge, front, shop_default)",
            ),
        ] {
            let choice = choose(&three, &labels(&pairs), &drivers()).unwrap();
            assert_eq!(choice.addresses, [ip.parse::<IpAddr>().unwrap()]);
            assert_eq!(choice.text, why);
        }
    }

    #[test]
    fn networks_that_the_host_cannot_dial_are_passed_over() {
        let two = on(&[
            ("lan", "192.168.1.9", ""),
            ("shop_default", "172.20.0.2", ""),
        ]);
        let choice = choose(&two, &labels(&[]), &drivers()).unwrap();
        assert_eq!(
            choice.text,
            "shop_default (the only one this host can dial)"
        );
    }

    #[test]
    fn both_families_are_kept() {
        let both = on(&[("front", "172.21.0.2", "fd00::2")]);
        let choice = choose(&both, &labels(&[]), &drivers()).unwrap();
        assert_eq!(choice.addresses.len(), 2);
        let six = on(&[("front", "", "fd00::2")]);
        let choice = choose(&six, &labels(&[]), &drivers()).unwrap();
        assert_eq!(choice.addresses, ["fd00::2".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn what_cannot_be_chosen_is_said() {
        for (networks, pairs, text) in [
            (
                on(&[("lan", "192.168.1.9", ""), ("swarm", "10.0.0.2", "")]),
                vec![],
                "it is on no network that this host can dial: lan (macvlan), swarm (overlay)",
            ),
            (
                on(&[("front", "172.21.0.2", "")]),
                vec![("heddle.network", "back")],
                "label heddle.network=back: it is not on that network, but on front",
            ),
            (
                on(&[("lan", "192.168.1.9", "")]),
                vec![("heddle.network", "lan")],
                "label heddle.network=lan: this host can't dial a network of driver macvlan",
            ),
            (
                on(&[("front", "", "")]),
                vec![],
                "it has no address on network front",
            ),
            (on(&[]), vec![], "it is on no network"),
        ] {
            assert_eq!(
                choose(&networks, &labels(&pairs), &drivers()).unwrap_err(),
                text
            );
        }
    }
}
