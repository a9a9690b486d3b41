//! Virtual IPs of an import: none outside of the ranges, none taken from a service that would have none then.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::Mesh;
use model::name::ServiceKey;

use super::ImportError;
use super::document::Item;
use crate::export::vip_owner;
use crate::layout::{Key, Keys};
use crate::record;
use crate::store::Entry;
use crate::vips::joined;

/// Who has which virtual IP, now and after the import.
pub(super) struct Vips<'a> {
    now: BTreeMap<IpAddr, (Option<ServiceKey>, &'a Entry)>,
    then: BTreeMap<IpAddr, &'a ServiceKey>,
    now_of: BTreeMap<ServiceKey, Vec<IpAddr>>,
    then_of: BTreeMap<&'a ServiceKey, Vec<IpAddr>>,
    services: BTreeSet<ServiceKey>,
    mesh: Option<Mesh>,
}

impl<'a> Vips<'a> {
    pub(super) fn new(keys: &Keys, items: &'a [Item], there: &'a BTreeMap<String, Entry>) -> Self {
        let mut vips = Vips {
            now: BTreeMap::new(),
            then: BTreeMap::new(),
            now_of: BTreeMap::new(),
            then_of: BTreeMap::new(),
            services: BTreeSet::new(),
            mesh: None,
        };
        for (path, entry) in there {
            match keys.parse(path) {
                Some(Key::Vip(ip)) => {
                    let owner = vip_owner(&entry.value);
                    if let Some(owner) = &owner {
                        vips.now_of.entry(owner.clone()).or_default().push(ip);
                    }
                    vips.now.insert(ip, (owner, entry));
                }
                Some(Key::Service(key)) => {
                    vips.services.insert(key);
                }
                Some(Key::Mesh) => vips.mesh = record::decode(&entry.value).ok(),
                _ => {}
            }
        }
        for item in items {
            match (&item.key, &item.vip_of) {
                (Key::Vip(ip), Some(service)) => {
                    vips.then.insert(*ip, service);
                    vips.then_of.entry(service).or_default().push(*ip);
                }
                (Key::Mesh, _) if vips.mesh.is_none() => {
                    vips.mesh = serde_json::from_value(item.value.clone()).ok();
                }
                _ => {}
            }
        }
        vips
    }

    pub(super) fn check_ranges(&self, items: &[Item]) -> Result<(), ImportError> {
        let Some(mesh) = &self.mesh else {
            return Ok(());
        };
        let errors: Vec<String> = items
            .iter()
            .filter_map(|item| match &item.key {
                Key::Vip(ip) if !mesh.vip_ranges.iter().any(|range| range.contains(*ip)) => {
                    Some(format!(
                        "VirtualIP {ip}: lies outside of mesh.vip_range {} (leave the document out, and its service gets \
                         another address when it is applied)",
                        joined(&mesh.vip_ranges)
                    ))
                }
                _ => None,
            })
            .collect();
        if errors.is_empty() {
            Ok(())
        } else {
            Err(ImportError::Documents { errors })
        }
    }

    /// The addresses of `ip`'s family that its service has now and shall not have then.
    pub(super) fn others(&self, ip: IpAddr, service: &ServiceKey) -> Vec<(IpAddr, &'a Entry)> {
        let own = self.now_of.get(service).map_or(&[][..], |ips| ips);
        own.iter()
            .filter(|other| other.is_ipv4() == ip.is_ipv4() && !self.then.contains_key(other))
            .filter_map(|other| self.now.get(other).map(|(_, entry)| (*other, *entry)))
            .collect()
    }

    /// Why `ip` can't be taken from the service that has it.
    pub(super) fn robbed(&self, ip: IpAddr, service: &ServiceKey) -> Option<String> {
        let (Some(holder), _) = self.now.get(&ip)? else {
            return None;
        };
        let gets_another = || {
            let then = self.then_of.get(holder);
            then.is_some_and(|ips| ips.iter().any(|other| other.is_ipv4() == ip.is_ipv4()))
        };
        if holder == service || !self.services.contains(holder) || gets_another() {
            return None;
        }
        Some(format!(
            "VirtualIP {ip} is held by service {holder}, which would be left without one: delete that service, or leave \
             this document out"
        ))
    }
}
