//! What stands on the store, on both backends: following, applying, virtual IPs, joining.

#[path = "../../tests/support/etcd.rs"]
mod etcd_server;
#[macro_use]
mod harness;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use harness::{Backend, PATIENCE, within};
use model::catalog::Catalog;
use model::manifest::{self, Manifest};
use model::service::ManagedBy;
use model::{IpNet, Mesh, Name, ServiceKey, Slice};
use registry::Registry;
use registry::follow::{FollowOptions, Follower, Update};
use registry::join::{JoinError, MeshWish};
use registry::publish::SliceWrite;
use registry::resources::{Action, ApplyError, ApplyOptions};
use registry::store::{Op, Outcome, Txn};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

both_backends! {
    a_service_is_applied_with_its_virtual_ip
    who_owns_a_resource_decides_who_may_write_it
    an_apply_is_all_or_nothing
    two_nodes_that_create_services_at_once_get_distinct_virtual_ips
    an_exhausted_range_is_a_warning_and_not_a_failure
    a_headless_service_gives_its_address_back
    the_first_node_seeds_the_mesh_and_the_others_must_agree
    a_follower_sees_what_is_and_what_changes
    a_follower_that_missed_deletes_synthesises_them
    a_seeded_follower_tells_what_went_while_nobody_looked
    a_bad_record_is_told_and_what_was_before_stays
}

fn key(text: &str) -> ServiceKey {
    text.parse().unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn service(key: &str, spec: &str) -> Manifest {
    let key: ServiceKey = key.parse().unwrap();
    let text = format!(
        "apiVersion: heddle/v1\nkind: Service\nmetadata: {{name: {}, namespace: {}}}\nspec: {spec}\n",
        key.name, key.namespace
    );
    manifest::parse(&text).unwrap().remove(0)
}

fn web() -> Manifest {
    service("shop/web", "{selector: app=web, ports: [{port: 80}]}")
}

fn options(manager: ManagedBy, ranges: &[&str]) -> ApplyOptions {
    ApplyOptions {
        manager,
        ranges: ranges.iter().map(|r| r.parse::<IpNet>().unwrap()).collect(),
        dry_run: false,
    }
}

fn by_apply() -> ApplyOptions {
    options(ManagedBy::Apply, &["10.96.0.0/24"])
}

fn registry(backend: &Backend) -> Registry {
    Registry::new(backend.store.clone(), "/heddle")
}

/// A follower with the catalog that its updates make.
struct Followed {
    updates: mpsc::Receiver<Update>,
    catalog: Catalog,
    bad: BTreeSet<String>,
    _stop: tokio_util::sync::DropGuard,
}

impl Followed {
    fn start(follower: Follower) -> Followed {
        let (out, updates) = mpsc::channel(16);
        let stop = CancellationToken::new();
        tokio::spawn(follower.run(out, stop.clone()));
        Followed {
            updates,
            catalog: Catalog::default(),
            bad: BTreeSet::new(),
            _stop: stop.drop_guard(),
        }
    }

    async fn until(&mut self, what: &str, so: impl Fn(&Followed) -> bool) {
        while !so(self) {
            let update = tokio::time::timeout(PATIENCE, self.updates.recv()).await;
            match update
                .unwrap_or_else(|_| panic!("not in time: {what}"))
                .expect("the follower runs")
            {
                Update::Changes {
                    changes,
                    bad,
                    mended,
                    ..
                } => {
                    self.bad.extend(bad.into_iter().map(|b| b.key));
                    for key in &mended {
                        self.bad.remove(key);
                    }
                    for change in changes {
                        self.catalog.apply(change);
                    }
                }
                Update::Lost { .. } => {}
            }
        }
    }
}

fn follower(registry: &Registry) -> Follower {
    Follower::new(registry.clone(), FollowOptions::default())
}

async fn a_service_is_applied_with_its_virtual_ip(backend: Backend) {
    let registry = registry(&backend);
    let applied = within(registry.apply(&[web()], &by_apply())).await.unwrap();
    assert_eq!(applied[0].action, Action::Created);
    assert_eq!(applied[0].vips.len(), 1);
    let again = within(registry.apply(&[web()], &by_apply())).await.unwrap();
    assert_eq!(
        (again[0].action, again[0].vips.len()),
        (Action::Unchanged, 0)
    );
    let changed = service("shop/web", "{selector: app=web, ports: [{port: 81}]}");
    let third = within(registry.apply(&[changed], &by_apply()))
        .await
        .unwrap();
    assert_eq!(
        (third[0].action, third[0].vips.len()),
        (Action::Configured, 0)
    );
    let mut followed = Followed::start(follower(&registry));
    followed
        .until("the service is seen", |f| f.catalog.services.size() == 1)
        .await;
    let seen = followed.catalog.services.get(&key("shop/web")).unwrap();
    assert_eq!(seen.metadata.generation, Some(2));
    assert!(seen.metadata.uid.is_some() && seen.metadata.resource_version.is_some());
    assert_eq!(followed.catalog.vips_of(&key("shop/web")), applied[0].vips);
    within(registry.delete_service(&key("shop/web"), &ManagedBy::Apply))
        .await
        .unwrap();
    followed
        .until("it goes with its address", |f| {
            f.catalog.services.is_empty() && f.catalog.vips.is_empty()
        })
        .await;
}

async fn who_owns_a_resource_decides_who_may_write_it(backend: Backend) {
    let registry = registry(&backend);
    let labels = options(ManagedBy::Labels, &["10.96.0.0/24"]);
    let file = options(ManagedBy::File(name("n1")), &["10.96.0.0/24"]);
    within(registry.apply(&[web()], &labels)).await.unwrap();
    within(registry.apply(&[web()], &file))
        .await
        .expect("a file beats labels");
    for other in [&labels, &by_apply()] {
        let error = within(registry.apply(&[web()], other)).await.unwrap_err();
        assert!(matches!(error, ApplyError::Owned { .. }), "{error}");
    }
    let error = within(registry.delete_service(&key("shop/web"), &ManagedBy::Apply))
        .await
        .unwrap_err();
    assert!(matches!(error, ApplyError::Owned { .. }), "{error}");
}

async fn an_apply_is_all_or_nothing(backend: Backend) {
    let registry = registry(&backend);
    within(registry.apply(&[web()], &options(ManagedBy::File(name("n1")), &[])))
        .await
        .unwrap();
    let other = service("shop/other", "{ports: [{port: 80}]}");
    let error = within(registry.apply(&[other, web()], &by_apply()))
        .await
        .unwrap_err();
    assert!(matches!(error, ApplyError::Owned { .. }), "{error}");
    let path = registry
        .keys()
        .path(&registry::layout::Key::Service(key("shop/other")));
    assert_eq!(within(backend.store.get(&path)).await.unwrap(), None);
    let many: Vec<Manifest> = (0..200)
        .map(|n| service(&format!("shop/s{n}"), "{ports: [{port: 80}]}"))
        .collect();
    let error = within(registry.apply(&many, &by_apply()))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("apply at most 25 at a time"),
        "{error}"
    );
}

async fn two_nodes_that_create_services_at_once_get_distinct_virtual_ips(backend: Backend) {
    let create = |node: &'static str| {
        let registry = registry(&backend);
        tokio::spawn(async move {
            let mut vips = Vec::new();
            for n in 0..40 {
                let manifest = service(&format!("shop/{node}-{n}"), "{ports: [{port: 80}]}");
                let applied = registry
                    .apply(&[manifest], &options(ManagedBy::Apply, &["10.96.0.0/25"]))
                    .await
                    .unwrap();
                vips.extend(applied[0].vips.iter().copied());
            }
            vips
        })
    };
    let (a, b) = (create("n1"), create("n2"));
    let mut all: Vec<IpAddr> = a.await.unwrap();
    all.extend(b.await.unwrap());
    assert_eq!(all.len(), 80);
    assert_eq!(
        all.iter().collect::<BTreeSet<_>>().len(),
        80,
        "an address was given twice"
    );
}

async fn an_exhausted_range_is_a_warning_and_not_a_failure(backend: Backend) {
    let registry = registry(&backend);
    let tiny = options(ManagedBy::Apply, &["10.96.0.0/30"]);
    for n in 0..2 {
        let applied = within(registry.apply(
            &[service(&format!("shop/s{n}"), "{ports: [{port: 80}]}")],
            &tiny,
        ))
        .await
        .unwrap();
        assert_eq!(applied[0].vips.len(), 1);
    }
    let applied = within(registry.apply(&[web()], &tiny)).await.unwrap();
    assert_eq!(
        (applied[0].action, applied[0].vips.len()),
        (Action::Created, 0)
    );
    assert!(
        applied[0]
            .warning
            .as_ref()
            .unwrap()
            .contains("every address of 10.96.0.0/30 is taken")
    );
    // Once there is room it gets one, though nothing else of it changes.
    within(registry.delete_service(&key("shop/s0"), &ManagedBy::Apply))
        .await
        .unwrap();
    let applied = within(registry.apply(&[web()], &tiny)).await.unwrap();
    assert_eq!(
        (applied[0].action, applied[0].vips.len()),
        (Action::Configured, 1)
    );
}

async fn a_headless_service_gives_its_address_back(backend: Backend) {
    let registry = registry(&backend);
    within(registry.apply(&[web()], &by_apply())).await.unwrap();
    let headless = service(
        "shop/web",
        "{selector: app=web, ports: [{port: 80}], headless: true}",
    );
    within(registry.apply(&[headless], &by_apply()))
        .await
        .unwrap();
    let listing = within(backend.store.list(&registry.keys().vips()))
        .await
        .unwrap();
    assert!(listing.entries.is_empty());
}

async fn the_first_node_seeds_the_mesh_and_the_others_must_agree(backend: Backend) {
    let registry = registry(&backend);
    let wish = |range: &str| MeshWish {
        vip_ranges: Some(vec![range.parse().unwrap()]),
        zone: None,
    };
    let seeded = within(registry.mesh(&wish("10.97.0.0/16"))).await.unwrap();
    assert_eq!(seeded.zone, Mesh::default().zone);
    assert_eq!(
        within(registry.mesh(&MeshWish::default())).await.unwrap(),
        seeded
    );
    let error = within(registry.mesh(&wish("10.98.0.0/16")))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            JoinError::Mismatch {
                key: "mesh.vip_range",
                ..
            }
        ),
        "{error}"
    );
}

async fn a_follower_sees_what_is_and_what_changes(backend: Backend) {
    let registry = registry(&backend);
    within(registry.apply(&[web()], &by_apply())).await.unwrap();
    let mut followed = Followed::start(follower(&registry));
    followed
        .until("what is", |f| f.catalog.services.size() == 1)
        .await;
    within(registry.apply(
        &[service("shop/db", "{ports: [{port: 5432}]}")],
        &by_apply(),
    ))
    .await
    .unwrap();
    followed
        .until("what comes", |f| f.catalog.services.size() == 2)
        .await;
    within(registry.delete_service(&key("shop/web"), &ManagedBy::Apply))
        .await
        .unwrap();
    followed
        .until("what goes", |f| f.catalog.services.size() == 1)
        .await;
}

async fn a_follower_that_missed_deletes_synthesises_them(backend: Backend) {
    let registry = registry(&backend);
    within(registry.apply(&[web()], &by_apply())).await.unwrap();
    let often = FollowOptions {
        resync: Duration::from_millis(50),
        ..FollowOptions::default()
    };
    // The comparison alone, as after a compaction: the listing that it makes no longer has the service.
    let mut followed = Followed::start(Follower::new(registry.clone(), often));
    followed
        .until("what is", |f| f.catalog.services.size() == 1)
        .await;
    within(registry.delete_service(&key("shop/web"), &ManagedBy::Apply))
        .await
        .unwrap();
    followed
        .until("what went", |f| {
            f.catalog.services.is_empty() && f.catalog.vips.is_empty()
        })
        .await;
}

async fn a_seeded_follower_tells_what_went_while_nobody_looked(backend: Backend) {
    let registry = registry(&backend);
    within(registry.apply(&[web()], &by_apply())).await.unwrap();
    let saved = within(backend.store.list(registry.keys().root()))
        .await
        .unwrap();
    within(registry.delete_service(&key("shop/web"), &ManagedBy::Apply))
        .await
        .unwrap();
    let revision = saved.revision;
    backend.compact(revision + 1).await;
    let mut follower = follower(&registry);
    let restored = follower.seed(saved.entries);
    assert_eq!(restored.len(), 2);
    let mut followed = Followed::start(follower);
    for change in restored {
        followed.catalog.apply(change);
    }
    followed
        .until("the deletes", |f| {
            f.catalog.services.is_empty() && f.catalog.vips.is_empty()
        })
        .await;
}

async fn a_bad_record_is_told_and_what_was_before_stays(backend: Backend) {
    let registry = registry(&backend);
    let slice = Slice {
        service: key("shop/web"),
        node: name("n1"),
        endpoints: Vec::new(),
    };
    // Without endpoints there is nothing to keep.
    let write = SliceWrite {
        service: slice.service.clone(),
        node: slice.node.clone(),
        slice: Some(slice),
        replaces: None,
    };
    let outcome = within(registry.write_slices(&[write])).await.unwrap();
    assert!(matches!(outcome, Outcome::Committed(_)));
    within(registry.apply(&[web()], &by_apply())).await.unwrap();
    let mut followed = Followed::start(follower(&registry));
    followed
        .until("what is", |f| f.catalog.services.size() == 1)
        .await;
    let path = registry
        .keys()
        .path(&registry::layout::Key::Service(key("shop/web")));
    let put = |value: &'static str| Txn::new().then(Op::put(path.clone(), value));
    let good = within(backend.store.get(&path))
        .await
        .unwrap()
        .unwrap()
        .value;
    within(backend.store.commit(put("{"))).await.unwrap();
    followed
        .until("the bad record is told", |f| f.bad.contains(&path))
        .await;
    assert_eq!(
        followed.catalog.services.size(),
        1,
        "what it was before stays"
    );
    let mend = Txn::new().then(Op::put(path.clone(), good));
    within(backend.store.commit(mend)).await.unwrap();
    followed
        .until("the mended record is told", |f| f.bad.is_empty())
        .await;
    assert!(
        matches!(followed.catalog.services.get(&key("shop/web")), Some(s) if s.metadata.generation == Some(1))
    );
}
