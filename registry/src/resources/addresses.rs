//! Which virtual IPs the services of one apply give up and take.
//!
//! In the usual case a service's address is found, or a free one, by looking at the few addresses that its name leads to
//! first; all are listed only when that is not enough.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::mesh::Mesh;
use model::name::ServiceKey;
use model::net::IpNet;
use model::service::{Service, ServiceSpec};

use super::ApplyError;
use crate::Registry;
use crate::layout::Key;
use crate::record;
use crate::store::{Compare, Entry, Op, Revision, StoreError, Txn};
use crate::vips::{self, VipRecord};

/// How many addresses are looked at one by one before all are listed.
const PROBES: usize = 16;

/// Who has an address; no service where the record can't be read.
#[derive(Clone, Debug)]
struct Held {
    by: Option<ServiceKey>,
    mod_revision: Revision,
}

impl Held {
    fn read(entry: &Entry) -> Self {
        let record = record::decode::<VipRecord>(&entry.value).ok();
        Held {
            by: record.map(|record| record.service),
            mod_revision: entry.mod_revision,
        }
    }
}

/// An address that a service takes, and what must hold for it.
struct Taken {
    by: ServiceKey,
    compares: Vec<Compare>,
}

/// What became of a service's addresses.
#[derive(Default)]
pub(super) struct Changed {
    /// What it takes.
    pub(super) taken: Vec<IpAddr>,
    /// What it should have and doesn't get.
    pub(super) warning: Option<String>,
}

/// The addresses that one apply looks at and changes.
pub(super) struct Addresses<'a> {
    registry: &'a Registry,
    ranges: &'a [IpNet],
    /// What manifests of this apply ask for by number: not for others to be given.
    requested: BTreeSet<IpAddr>,
    /// What was looked at one by one.
    seen: BTreeMap<IpAddr, Option<Held>>,
    /// All, once they had to be listed.
    listed: Option<BTreeMap<IpAddr, Held>>,
    released: BTreeMap<IpAddr, Revision>,
    taken: BTreeMap<IpAddr, Taken>,
}

impl<'a> Addresses<'a> {
    pub(super) fn new<'m>(
        registry: &'a Registry,
        ranges: &'a [IpNet],
        specs: impl Iterator<Item = &'m ServiceSpec>,
    ) -> Self {
        Addresses {
            registry,
            ranges,
            requested: specs.flat_map(|spec| spec.vips.iter().copied()).collect(),
            seen: BTreeMap::new(),
            listed: None,
            released: BTreeMap::new(),
            taken: BTreeMap::new(),
        }
    }

    fn path(&self, ip: IpAddr) -> String {
        self.registry.keys().path(&Key::Vip(ip))
    }

    async fn look(&mut self, ip: IpAddr) -> Result<Option<Held>, StoreError> {
        if let Some(listed) = &self.listed {
            return Ok(listed.get(&ip).cloned());
        }
        if let Some(seen) = self.seen.get(&ip) {
            return Ok(seen.clone());
        }
        let entry = self.registry.store().get(&self.path(ip)).await?;
        let held = entry.as_ref().map(Held::read);
        self.seen.insert(ip, held.clone());
        Ok(held)
    }

    async fn list(&mut self) -> Result<&BTreeMap<IpAddr, Held>, StoreError> {
        let listed = match self.listed.take() {
            Some(listed) => listed,
            None => {
                let keys = self.registry.keys();
                let listing = self.registry.store().list(&keys.vips()).await?;
                let entries = listing.entries.iter();
                entries
                    .filter_map(|entry| match keys.parse(&entry.key) {
                        Some(Key::Vip(ip)) => Some((ip, Held::read(entry))),
                        _ => None,
                    })
                    .collect()
            }
        };
        Ok(self.listed.insert(listed))
    }

    /// All addresses of a service, found by listing.
    pub(super) async fn all_of(&mut self, key: &ServiceKey) -> Result<Vec<IpAddr>, StoreError> {
        let listed = self.list().await?;
        Ok(listed
            .iter()
            .filter(|(_, held)| held.by.as_ref() == Some(key))
            .map(|(ip, _)| *ip)
            .collect())
    }

    /// The addresses that a service has, as far as it matters to what it shall have.
    pub(super) async fn of(
        &mut self,
        key: &ServiceKey,
        before: Option<&Service>,
        after: &ServiceSpec,
    ) -> Result<Vec<IpAddr>, ApplyError> {
        if !after.has_vips() && before.is_none_or(|before| !before.spec.has_vips()) {
            return Ok(Vec::new());
        }
        if after.has_vips()
            && let Some(mine) = self.of_by_probes(key, before, after).await?
        {
            return Ok(mine);
        }
        Ok(self.all_of(key).await?)
    }

    /// `None` where looking at a few is not enough to know.
    async fn of_by_probes(
        &mut self,
        key: &ServiceKey,
        before: Option<&Service>,
        after: &ServiceSpec,
    ) -> Result<Option<Vec<IpAddr>>, ApplyError> {
        let mut mine = Vec::new();
        for is_ipv4 in [true, false] {
            let requests = before.map(|before| &before.spec.vips).into_iter();
            let likely: Vec<IpAddr> = requests
                .chain([&after.vips])
                .flatten()
                .copied()
                .filter(|ip| ip.is_ipv4() == is_ipv4)
                .collect();
            let range = self
                .ranges
                .iter()
                .find(|r| r.addr().is_ipv4() == is_ipv4)
                .copied();
            if likely.is_empty() && range.is_none() {
                continue;
            }
            // What is new has nothing yet where it asks for an address.
            let probed = before.is_some() || likely.is_empty();
            let tried = range
                .filter(|_| probed)
                .into_iter()
                .flat_map(|range| vips::candidates(key, &range).take(PROBES));
            let mut found = None;
            for ip in likely.into_iter().chain(tried.collect::<Vec<_>>()) {
                match self.look(ip).await? {
                    Some(held) if held.by.as_ref() == Some(key) => {
                        found = Some(ip);
                        break;
                    }
                    // What is new has none beyond the one that it would take.
                    None if before.is_none() => break,
                    _ => {}
                }
            }
            match found {
                Some(ip) => mine.push(ip),
                None if before.is_some() => return Ok(None),
                None => {}
            }
        }
        Ok(Some(mine))
    }

    /// Gives up what a service has and shall not have.
    pub(super) async fn release(
        &mut self,
        mine: &mut Vec<IpAddr>,
        after: &ServiceSpec,
    ) -> Result<bool, ApplyError> {
        let given_up: Vec<IpAddr> = mine
            .iter()
            .copied()
            .filter(|ip| {
                let mut wanted = after.vips.iter();
                let moves =
                    wanted.any(|other| other.is_ipv4() == ip.is_ipv4() && !after.vips.contains(ip));
                !after.has_vips() || moves
            })
            .collect();
        mine.retain(|ip| !given_up.contains(ip));
        let any = !given_up.is_empty();
        self.give_up(given_up).await?;
        Ok(any)
    }

    async fn give_up(&mut self, ips: Vec<IpAddr>) -> Result<(), StoreError> {
        for ip in ips {
            if let Some(held) = self.look(ip).await? {
                self.released.insert(ip, held.mod_revision);
            }
        }
        Ok(())
    }

    /// Takes what a service lacks: what it asks for, and of the other families what is free.
    pub(super) async fn take(
        &mut self,
        key: &ServiceKey,
        mine: &[IpAddr],
        after: &ServiceSpec,
    ) -> Result<Changed, ApplyError> {
        let mut changed = Changed::default();
        if !after.has_vips() {
            return Ok(changed);
        }
        for ip in after.vips.iter().filter(|ip| !mine.contains(ip)) {
            let compares = self.request(key, *ip).await?;
            self.put(key, *ip, compares, &mut changed);
        }
        let mut lacking: BTreeMap<bool, Vec<IpNet>> = BTreeMap::new();
        let has = |range: &IpNet| {
            let mut all = mine.iter().chain(&after.vips);
            all.any(|ip| ip.is_ipv4() == range.addr().is_ipv4())
        };
        for range in self.ranges.iter().filter(|range| !has(range)) {
            let family = lacking.entry(!range.addr().is_ipv4());
            family.or_default().push(*range);
        }
        for (is_ipv6, ranges) in lacking {
            match self.free(key, &ranges).await? {
                Some(ip) => {
                    let compares = vec![Compare::Absent(self.path(ip))];
                    self.put(key, ip, compares, &mut changed);
                }
                None => {
                    let family = if is_ipv6 { "IPv6" } else { "IPv4" };
                    let all = ranges.iter().map(vips::capacity);
                    let all = all.fold(0, u128::saturating_add);
                    changed.warning = Some(format!(
                        "{key} has no {family} virtual IP: every address of {} is taken ({all} of the {all} that services \
                         may have): delete services or make them headless and apply this one again, or move to a larger \
                         mesh.vip_range",
                        vips::joined(&ranges)
                    ));
                }
            }
        }
        Ok(changed)
    }

    fn put(&mut self, key: &ServiceKey, ip: IpAddr, compares: Vec<Compare>, changed: &mut Changed) {
        let by = key.clone();
        self.taken.insert(ip, Taken { by, compares });
        changed.taken.push(ip);
    }

    /// What must hold for a service to get the very address that it asks for.
    async fn request(&mut self, key: &ServiceKey, ip: IpAddr) -> Result<Vec<Compare>, ApplyError> {
        let held_by = |holder: Option<ServiceKey>| ApplyError::VipHeld {
            key: key.clone(),
            ip,
            holder: holder.map_or_else(
                || "a record that this version can't read".to_owned(),
                |holder| format!("service {holder}"),
            ),
        };
        if let Some(reason) = vips::unusable(ip, self.ranges) {
            let key = key.clone();
            return Err(ApplyError::VipUnusable { key, ip, reason });
        }
        if let Some(other) = self.taken.get(&ip) {
            return Err(held_by(Some(other.by.clone())));
        }
        if self.released.contains_key(&ip) {
            return Ok(Vec::new());
        }
        let Some(held) = self.look(ip).await? else {
            return Ok(vec![Compare::Absent(self.path(ip))]);
        };
        let unchanged = Compare::Unchanged {
            key: self.path(ip),
            mod_revision: held.mod_revision,
        };
        let Some(holder) = held.by else {
            return Err(held_by(None));
        };
        if holder == *key {
            return Ok(vec![unchanged]);
        }
        let service = self.registry.keys().path(&Key::Service(holder.clone()));
        match self.registry.store().get(&service).await? {
            Some(_) => Err(held_by(Some(holder))),
            // Left behind by hand: its service is gone.
            None => Ok(vec![unchanged, Compare::Absent(service)]),
        }
    }

    /// A free address of the ranges, which are of one family.
    async fn free(
        &mut self,
        key: &ServiceKey,
        ranges: &[IpNet],
    ) -> Result<Option<IpAddr>, StoreError> {
        let first = ranges.first().into_iter();
        let tried: Vec<IpAddr> = first
            .flat_map(|range| vips::candidates(key, range).take(PROBES))
            .collect();
        for ip in tried {
            if !self.is_spoken_for(&ip) && self.look(ip).await?.is_none() {
                return Ok(Some(ip));
            }
        }
        self.list().await?;
        let is_taken = |ip: &IpAddr| {
            let listed = self.listed.as_ref();
            self.is_spoken_for(ip) || listed.is_some_and(|listed| listed.contains_key(ip))
        };
        let mut free = ranges
            .iter()
            .filter_map(|range| vips::choose(key, range, is_taken));
        Ok(free.next())
    }

    fn is_spoken_for(&self, ip: &IpAddr) -> bool {
        self.taken.contains_key(ip) || self.released.contains_key(ip) || self.requested.contains(ip)
    }

    /// Writes it all: an address that goes from one service to another is written once.
    pub(super) fn into_txn(self, txn: &mut Txn) {
        let path = |ip| self.registry.keys().path(&Key::Vip(ip));
        for (ip, mod_revision) in self.released {
            txn.compares.push(Compare::Unchanged {
                key: path(ip),
                mod_revision,
            });
            if !self.taken.contains_key(&ip) {
                txn.ops.push(Op::delete(path(ip)));
            }
        }
        for (ip, Taken { by, compares }) in self.taken {
            txn.compares.extend(compares);
            let record = VipRecord { service: by };
            txn.ops.push(Op::put(path(ip), record::encode(&record)));
        }
    }
}

/// Gives up all addresses of a service that is deleted; `None` where its record can't be read.
pub(super) async fn release_all(
    registry: &Registry,
    key: &ServiceKey,
    service: Option<&Service>,
    txn: &mut Txn,
) -> Result<(), ApplyError> {
    let mesh = registry
        .store()
        .get(&registry.keys().path(&Key::Mesh))
        .await?;
    let mesh: Option<Mesh> = mesh.and_then(|entry| record::decode(&entry.value).ok());
    let ranges = mesh.map_or_else(Vec::new, |mesh| mesh.vip_ranges);
    let mut addresses = Addresses::new(registry, &ranges, std::iter::empty());
    let mine = match service {
        Some(service) if !ranges.is_empty() => {
            addresses.of(key, Some(service), &service.spec).await?
        }
        _ => addresses.all_of(key).await?,
    };
    addresses.give_up(mine).await?;
    addresses.into_txn(txn);
    Ok(())
}
