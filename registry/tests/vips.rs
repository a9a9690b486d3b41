//! Virtual IPs on both backends: unique under races, stable, asked for by number, and what is told when there are none.

#[path = "../../tests/support/etcd.rs"]
mod etcd_server;
#[macro_use]
mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use harness::{Backend, committed, within};
use model::manifest::{self, Manifest};
use model::service::{ManagedBy, Service};
use model::{IpNet, ServiceKey, Timestamp};
use registry::Registry;
use registry::join::MeshWish;
use registry::layout::Key;
use registry::record;
use registry::resources::{Action, Applied, ApplyError, ApplyOptions};
use registry::store::{Lease, Listing, Op, Outcome, Revision, Store, StoreError, Txn, Watch};
use registry::vips::{self, VipRecord};

both_backends! {
    five_hundred_services_that_two_nodes_create_at_once_get_distinct_addresses_and_keep_them
    a_range_that_two_nodes_fill_at_once_is_used_to_its_last_address
    creating_and_deleting_a_service_among_ten_thousand_lists_nothing
    a_service_gets_an_address_of_each_family
    an_exhausted_family_is_told_and_costs_nothing_else
    what_a_service_asks_for_it_gets
    what_it_can_not_get_is_refused_by_name_and_nothing_is_written
    a_service_moves_and_gives_up_its_old_address_with_the_same_write
    two_services_swap_their_addresses_in_one_apply
    what_one_manifest_asks_for_is_not_given_to_another
    an_address_left_behind_can_be_asked_for
    a_service_that_only_gets_an_address_is_written_too
    an_unused_service_of_labels_ends_only_if_nobody_used_it_meanwhile
}

const DUAL: [&str; 2] = ["10.96.0.0/16", "fd00:96::/112"];

fn key(text: &str) -> ServiceKey {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn service(key: &str, more: &str) -> Manifest {
    let key: ServiceKey = key.parse().unwrap();
    let text = format!(
        "apiVersion: heddle/v1\nkind: Service\nmetadata: {{name: {}, namespace: {}}}\nspec: {{ports: [{{port: 80}}]{more}}}\n",
        key.name, key.namespace
    );
    manifest::parse(&text).unwrap().remove(0)
}

fn plain(key: &str) -> Manifest {
    service(key, "")
}

fn asking(key: &str, vips: &str) -> Manifest {
    service(key, &format!(", vips: [{vips}]"))
}

fn options(ranges: &[&str]) -> ApplyOptions {
    ApplyOptions {
        manager: ManagedBy::Apply,
        ranges: ranges.iter().map(|r| r.parse::<IpNet>().unwrap()).collect(),
        dry_run: false,
    }
}

fn registry(backend: &Backend) -> Registry {
    Registry::new(backend.store.clone(), "/heddle")
}

async fn apply(registry: &Registry, manifests: &[Manifest], ranges: &[&str]) -> Vec<Applied> {
    within(registry.apply(manifests, &options(ranges)))
        .await
        .unwrap()
}

async fn refused(registry: &Registry, manifests: &[Manifest], ranges: &[&str]) -> ApplyError {
    within(registry.apply(manifests, &options(ranges)))
        .await
        .unwrap_err()
}

/// Who has which address, as the registry says.
async fn held(backend: &Backend) -> BTreeMap<IpAddr, ServiceKey> {
    let registry = registry(backend);
    let listing = within(backend.store.list(&registry.keys().vips())).await;
    let entries = listing.unwrap().entries.into_iter();
    entries
        .map(|entry| {
            let Some(Key::Vip(ip)) = registry.keys().parse(&entry.key) else {
                panic!("{} is no virtual IP", entry.key)
            };
            let record: VipRecord = record::decode(&entry.value).unwrap();
            (ip, record.service)
        })
        .collect()
}

async fn of(backend: &Backend, service: &str) -> Vec<IpAddr> {
    let service = key(service);
    let all = held(backend).await.into_iter();
    all.filter(|(_, by)| *by == service)
        .map(|(ip, _)| ip)
        .collect()
}

async fn delete(registry: &Registry, service: &str) {
    within(registry.delete_service(&key(service), &ManagedBy::Apply))
        .await
        .unwrap();
}

/// Creates services, several at a time.
async fn create(registry: &Registry, names: Vec<String>, range: &'static str) {
    let next = Arc::new(AtomicUsize::new(0));
    let names = Arc::new(names);
    let workers: Vec<_> = (0..8)
        .map(|_| {
            let (registry, next, names) = (registry.clone(), next.clone(), names.clone());
            tokio::spawn(async move {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let options = options(&[range]);
                    let applied = registry.apply(&[plain(name)], &options).await.unwrap();
                    assert_eq!(applied[0].vips.len(), 1, "{name}");
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
}

async fn five_hundred_services_that_two_nodes_create_at_once_get_distinct_addresses_and_keep_them(
    mut backend: Backend,
) {
    let (a, b) = (
        registry(&backend),
        Registry::new(backend.another().await, "/heddle"),
    );
    let names =
        |node: &str| -> Vec<String> { (0..250).map(|n| format!("shop/{node}-{n}")).collect() };
    let began = Instant::now();
    tokio::join!(
        create(&a, names("n1"), "10.96.0.0/22"),
        create(&b, names("n2"), "10.96.0.0/22")
    );
    println!("500 services by two nodes: {:?}", began.elapsed());
    let first = held(&backend).await;
    assert_eq!(first.len(), 500);
    let owners: BTreeSet<&ServiceKey> = first.values().collect();
    assert_eq!(owners.len(), 500, "each service has one address");
    drop((a, b));
    backend.restart().await;
    let registry = registry(&backend);
    let mut all = names("n1");
    all.extend(names("n2"));
    for name in &all {
        let applied = apply(&registry, &[plain(name)], &["10.96.0.0/22"]).await;
        assert_eq!(applied[0].action, Action::Unchanged, "{name}");
    }
    for name in all.iter().step_by(25) {
        delete(&registry, name).await;
        apply(&registry, &[plain(name)], &["10.96.0.0/22"]).await;
    }
    assert_eq!(
        held(&backend).await,
        first,
        "re-created, each got its own again"
    );
}

async fn a_range_that_two_nodes_fill_at_once_is_used_to_its_last_address(backend: Backend) {
    const RANGE: &str = "10.96.0.0/25";
    let (a, b) = (
        registry(&backend),
        Registry::new(backend.another().await, "/heddle"),
    );
    let count = vips::capacity(&RANGE.parse().unwrap()) / 2;
    let names = |node: &str, count: u128| (0..count).map(|n| format!("shop/{node}-{n}")).collect();
    tokio::join!(
        create(&a, names("n1", count), RANGE),
        create(&b, names("n2", count), RANGE)
    );
    create(&a, names("n3", 1), RANGE).await;
    assert_eq!(held(&backend).await.len() as u128, 2 * count + 1);
    let late = apply(&a, &[plain("shop/late")], &[RANGE]).await;
    assert!(late[0].warning.is_some());
}

/// Counts the calls that a store gets.
struct Counting {
    inner: Arc<dyn Store>,
    gets: AtomicUsize,
    lists: AtomicUsize,
}

#[async_trait]
impl Store for Counting {
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.lists.fetch_add(1, Ordering::Relaxed);
        self.inner.list(prefix).await
    }
    async fn get(&self, key: &str) -> Result<Option<registry::store::Entry>, StoreError> {
        self.gets.fetch_add(1, Ordering::Relaxed);
        self.inner.get(key).await
    }
    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        self.inner.commit(txn).await
    }
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.inner.watch(prefix, after).await
    }
    async fn lease(&self, ttl: Duration) -> Result<Lease, StoreError> {
        self.inner.lease(ttl).await
    }
    fn name(&self) -> &'static str {
        self.inner.name()
    }
}

async fn creating_and_deleting_a_service_among_ten_thousand_lists_nothing(backend: Backend) {
    let keys = registry(&backend).keys().clone();
    let range: IpNet = "10.96.0.0/16".parse().unwrap();
    let mut taken = BTreeSet::new();
    let mut txn = Txn::new();
    for n in 0..10_000 {
        let service = key(&format!("other/s{n}"));
        let ip = vips::choose(&service, &range, |ip| taken.contains(ip)).unwrap();
        taken.insert(ip);
        let record = record::encode(&VipRecord { service });
        txn = txn.then(Op::put(keys.path(&Key::Vip(ip)), record));
        if txn.ops.len() == 100 {
            committed(&backend.store, std::mem::take(&mut txn)).await;
        }
    }
    let counting = Arc::new(Counting {
        inner: backend.store.clone(),
        gets: AtomicUsize::new(0),
        lists: AtomicUsize::new(0),
    });
    let registry = Registry::new(counting.clone(), "/heddle");
    const SERVICES: usize = 100;
    // Created, unchanged, changed.
    for (round, more) in ["", "", ", loadBalancing: {policy: least-connections}"]
        .iter()
        .enumerate()
    {
        let began = Instant::now();
        for n in 0..SERVICES {
            apply(
                &registry,
                &[service(&format!("shop/s{n}"), more)],
                &["10.96.0.0/16"],
            )
            .await;
        }
        let gets = counting.gets.swap(0, Ordering::Relaxed);
        let lists = counting.lists.swap(0, Ordering::Relaxed);
        println!(
            "round {round}: {:?} and {} gets, {lists} listings for each of {SERVICES}",
            began.elapsed() / SERVICES as u32,
            gets as f64 / SERVICES as f64
        );
        assert_eq!(lists, 0);
        assert!(gets < 4 * SERVICES, "{gets}");
    }
    assert_eq!(held(&backend).await.len(), 10_000 + SERVICES);
    within(registry.mesh(&MeshWish::default())).await.unwrap();
    let began = Instant::now();
    for n in 0..SERVICES {
        delete(&registry, &format!("shop/s{n}")).await;
    }
    let lists = counting.lists.load(Ordering::Relaxed);
    println!(
        "deleted: {:?} for each, {lists} listings",
        began.elapsed() / SERVICES as u32
    );
    assert_eq!(lists, 0);
    assert_eq!(held(&backend).await.len(), 10_000);
}

async fn a_service_gets_an_address_of_each_family(backend: Backend) {
    let registry = registry(&backend);
    let first = apply(&registry, &[plain("shop/web")], &DUAL).await;
    let families: Vec<bool> = first[0].vips.iter().map(IpAddr::is_ipv4).collect();
    assert_eq!(families, [true, false]);
    let again = apply(&registry, &[plain("shop/web")], &DUAL).await;
    assert_eq!(again[0].action, Action::Unchanged);
    delete(&registry, "shop/web").await;
    assert!(held(&backend).await.is_empty());
    // A range that comes later gives what is lacking, and nothing else changes.
    let v4 = apply(&registry, &[plain("shop/web")], &DUAL[..1]).await;
    let both = apply(&registry, &[plain("shop/web")], &DUAL).await;
    let vips = |applied: &[Applied]| applied[0].vips.clone();
    assert_eq!([vips(&v4), vips(&both)].concat(), vips(&first));
}

async fn an_exhausted_family_is_told_and_costs_nothing_else(backend: Backend) {
    let registry = registry(&backend);
    let ranges = ["10.96.0.0/30", "10.97.0.0/30", "fd00:96::/112"];
    for n in 0..4 {
        let applied = apply(&registry, &[plain(&format!("shop/s{n}"))], &ranges).await;
        assert_eq!((applied[0].vips.len(), &applied[0].warning), (2, &None));
    }
    let late = apply(&registry, &[plain("shop/late")], &ranges).await;
    assert_eq!(late[0].vips.len(), 1, "of the other family there is room");
    let warning = late[0].warning.as_deref().unwrap();
    for part in [
        "shop/late has no IPv4 virtual IP",
        "every address of 10.96.0.0/30, 10.97.0.0/30 is taken (4 of the 4 that services may have)",
        "make them headless and apply this one again, or move to a larger mesh.vip_range",
    ] {
        assert!(warning.contains(part), "{warning}");
    }
    let freed = of(&backend, "shop/s2").await;
    delete(&registry, "shop/s2").await;
    let late = apply(&registry, &[plain("shop/late")], &ranges).await;
    assert_eq!(late[0].vips, freed[..1], "freed, it is there at once");
}

async fn what_a_service_asks_for_it_gets(backend: Backend) {
    let registry = registry(&backend);
    let web = asking("shop/web", "10.96.5.5");
    let applied = apply(&registry, std::slice::from_ref(&web), &DUAL).await;
    assert_eq!(applied[0].vips[0], ip("10.96.5.5"));
    assert!(applied[0].vips[1].is_ipv6(), "the other family is given");
    let again = apply(&registry, &[web], &DUAL).await;
    assert_eq!(again[0].action, Action::Unchanged);
    let both = asking("shop/db", "\"fd00:96::55\", 10.96.5.6");
    let applied = apply(&registry, &[both], &DUAL).await;
    assert_eq!(applied[0].vips, [ip("10.96.5.6"), ip("fd00:96::55")]);
    delete(&registry, "shop/db").await;
    assert_eq!(held(&backend).await.len(), 2);
}

async fn what_it_can_not_get_is_refused_by_name_and_nothing_is_written(backend: Backend) {
    let registry = registry(&backend);
    apply(&registry, &[asking("shop/web", "10.96.5.5")], &DUAL).await;
    let before = held(&backend).await;
    for (vips, what) in [
        (
            "10.96.5.5",
            "Service shop/db: spec.vips asks for 10.96.5.5, which service shop/web has: ask for another",
        ),
        (
            "10.97.5.5",
            "it lies outside of mesh.vip_range, which is 10.96.0.0/16, fd00:96::/112",
        ),
        (
            "10.96.0.10",
            "it is reserved in 10.96.0.0/16: services get 10.96.0.16 to 10.96.255.254",
        ),
        ("10.96.255.255", "it is reserved"),
        ("\"fd00:96::a\"", "it is reserved in fd00:96::/112"),
    ] {
        let all = [plain("shop/other"), asking("shop/db", vips)];
        let error = refused(&registry, &all, &DUAL).await;
        let is_conflict = matches!(error, ApplyError::VipHeld { .. });
        assert_eq!(is_conflict, what.contains("shop/web has"), "{error}");
        assert!(error.to_string().contains(what), "{error}");
    }
    let twice = [asking("shop/a", "10.96.5.7"), asking("shop/b", "10.96.5.7")];
    let error = refused(&registry, &twice, &DUAL).await;
    assert!(
        error.to_string().contains("which service shop/a has"),
        "{error}"
    );
    assert_eq!(held(&backend).await, before);
    let services = format!("{}services/", registry.keys().root());
    let listing = within(backend.store.list(&services)).await.unwrap();
    assert_eq!(listing.entries.len(), 1);
    // What it has it may keep, whatever the ranges became.
    let other = ["10.98.0.0/16"];
    let kept = apply(&registry, &[asking("shop/web", "10.96.5.5")], &other).await;
    assert_eq!(kept[0].action, Action::Unchanged);
}

async fn a_service_moves_and_gives_up_its_old_address_with_the_same_write(backend: Backend) {
    let registry = registry(&backend);
    let given = apply(&registry, &[plain("shop/web")], &DUAL).await[0]
        .vips
        .clone();
    for (manifest, vips) in [
        (asking("shop/web", "10.96.5.5"), [ip("10.96.5.5"), given[1]]),
        (asking("shop/web", "10.96.5.6"), [ip("10.96.5.6"), given[1]]),
        (
            asking("shop/web", "\"fd00:96::77\""),
            [ip("10.96.5.6"), ip("fd00:96::77")],
        ),
        // Asking for nothing any more moves nothing.
        (plain("shop/web"), [ip("10.96.5.6"), ip("fd00:96::77")]),
    ] {
        let applied = apply(&registry, std::slice::from_ref(&manifest), &DUAL).await;
        assert_eq!(applied[0].action, Action::Configured);
        assert_eq!(of(&backend, "shop/web").await, vips);
        let again = apply(&registry, &[manifest], &DUAL).await;
        assert_eq!(again[0].action, Action::Unchanged);
    }
    let headless = service("shop/web", ", headless: true");
    apply(&registry, &[headless], &DUAL).await;
    assert!(held(&backend).await.is_empty());
    let back = apply(&registry, &[plain("shop/web")], &DUAL).await;
    assert_eq!(back[0].vips, given);
}

async fn two_services_swap_their_addresses_in_one_apply(backend: Backend) {
    let registry = registry(&backend);
    let (a, b) = ("10.96.5.5", "10.96.5.6");
    let pair = |web: &str, db: &str| [asking("shop/web", web), asking("shop/db", db)];
    apply(&registry, &pair(a, b), &["10.96.0.0/16"]).await;
    let alone = [asking("shop/web", b)];
    let error = refused(&registry, &alone, &["10.96.0.0/16"]).await;
    assert!(error.to_string().contains("service shop/db"), "{error}");
    apply(&registry, &pair(b, a), &["10.96.0.0/16"]).await;
    assert_eq!(of(&backend, "shop/web").await, [ip(b)]);
    assert_eq!(of(&backend, "shop/db").await, [ip(a)]);
}

async fn what_one_manifest_asks_for_is_not_given_to_another(backend: Backend) {
    let registry = registry(&backend);
    let range: IpNet = "10.96.0.0/16".parse().unwrap();
    let first = vips::candidates(&key("shop/any"), &range).next().unwrap();
    let all = [plain("shop/any"), asking("shop/web", &first.to_string())];
    let applied = apply(&registry, &all, &["10.96.0.0/16"]).await;
    assert_eq!(applied[1].vips, [first]);
    assert_eq!(applied[0].vips.len(), 1);
    assert_ne!(applied[0].vips, [first]);
}

async fn an_address_left_behind_can_be_asked_for(backend: Backend) {
    let registry = registry(&backend);
    let path = registry.keys().path(&Key::Vip(ip("10.96.5.5")));
    let record = record::encode(&VipRecord {
        service: key("shop/gone"),
    });
    committed(&backend.store, Txn::new().then(Op::put(path, record))).await;
    apply(&registry, &[asking("shop/web", "10.96.5.5")], &DUAL).await;
    assert!(of(&backend, "shop/web").await.contains(&ip("10.96.5.5")));
}

async fn a_service_that_only_gets_an_address_is_written_too(backend: Backend) {
    let registry = registry(&backend);
    let path = registry.keys().path(&Key::Service(key("shop/web")));
    apply(&registry, &[plain("shop/web")], &[]).await;
    let before = within(backend.store.get(&path)).await.unwrap().unwrap();
    // Two nodes that give it an address at once would each not see the other's, were it not for the service's record.
    let registries = [
        registry.clone(),
        Registry::new(backend.another().await, "/heddle"),
    ];
    let [(range_a, a), (range_b, b)] = [
        ("10.96.0.0/24", &registries[0]),
        ("10.97.0.0/24", &registries[1]),
    ];
    let web = [plain("shop/web")];
    let (options_a, options_b) = (options(&[range_a]), options(&[range_b]));
    let (a, b) = tokio::join!(a.apply(&web, &options_a), b.apply(&web, &options_b));
    let given = [a.unwrap(), b.unwrap()].concat();
    assert_eq!(given.iter().flat_map(|applied| &applied.vips).count(), 1);
    assert_eq!(held(&backend).await.len(), 1);
    let after = within(backend.store.get(&path)).await.unwrap().unwrap();
    assert_eq!(after.value, before.value);
    assert!(after.mod_revision > before.mod_revision);
}

async fn an_unused_service_of_labels_ends_only_if_nobody_used_it_meanwhile(backend: Backend) {
    let registry = registry(&backend);
    let labels = ApplyOptions {
        manager: ManagedBy::Labels,
        ..options(&DUAL)
    };
    within(registry.apply(&[plain("shop/web")], &labels))
        .await
        .unwrap();
    let path = registry.keys().path(&Key::Service(key("shop/web")));
    let noted = async || {
        let entry = within(backend.store.get(&path)).await.unwrap().unwrap();
        let service: Service = record::decode(&entry.value).unwrap();
        (
            service.metadata.unused_since,
            service.metadata.generation,
            entry.mod_revision,
        )
    };
    let (early, late) = (Timestamp(1_000), Timestamp(2_000));
    let note = async |since| {
        within(registry.note_unused(&key("shop/web"), since))
            .await
            .unwrap()
    };
    let end = async |since| {
        within(registry.delete_unused(&key("shop/web"), since))
            .await
            .unwrap()
    };
    note(Some(early)).await;
    let (since, generation, revision) = noted().await;
    assert_eq!((since, generation), (Some(early), Some(1)));
    note(Some(late)).await;
    assert_eq!(noted().await.2, revision, "whoever noted it first decides");
    note(None).await;
    assert_eq!(noted().await.0, None);
    assert!(!end(early).await, "it is used again");
    note(Some(late)).await;
    assert!(!end(early).await, "and unused only since later");
    // Whoever takes it over has asked for it.
    apply(&registry, &[plain("shop/web")], &DUAL).await;
    assert_eq!(noted().await.0, None);
    note(Some(late)).await;
    assert_eq!(noted().await.0, None, "it is not made of labels any more");
    assert!(!end(late).await);
    delete(&registry, "shop/web").await;
    within(registry.apply(&[plain("shop/web")], &labels))
        .await
        .unwrap();
    note(Some(late)).await;
    assert!(end(late).await);
    assert!(held(&backend).await.is_empty());
    assert!(!end(late).await);
}
