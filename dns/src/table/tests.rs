//! A table that followed every change is the table that would be made anew.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::name::ServiceKey;
use proptest::prelude::*;

use super::*;
use crate::serial::Serials;
use crate::testing::{World, key};

const SERVICES: [&str; 4] = ["a/one", "a/two", "b/one", "c/three"];

#[derive(Clone, Debug)]
enum Step {
    Service(usize, bool),
    Endpoints(usize, Vec<(u8, u16)>),
    Delete(usize),
    Update(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let service = 0..SERVICES.len();
    let endpoints = prop::collection::vec((0u8..6, 0u16..3), 0..5);
    prop::collection::vec(
        prop_oneof![
            (service.clone(), any::<bool>()).prop_map(|(s, h)| Step::Service(s, h)),
            (service.clone(), endpoints).prop_map(|(s, e)| Step::Endpoints(s, e)),
            service.prop_map(Step::Delete),
            any::<bool>().prop_map(Step::Update),
        ],
        0..24,
    )
}

fn all(table: &Table) -> BTreeMap<Vec<u8>, entry::Entry> {
    table
        .index
        .entries()
        .map(|entry| (entry.owner().to_vec(), entry.clone()))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn following_changes_comes_to_the_same_as_starting_anew(steps in steps()) {
        let servers = vec!["10.96.0.10".parse().unwrap()];
        let mut world = World::new();
        let serials = Arc::<Serials>::default();
        let mut updater = Updater::new(servers.clone(), serials.clone(), 1);
        let mut changed: Vec<ServiceKey> = Vec::new();
        updater.update(&world.snapshot(), None);
        for step in steps.into_iter().chain([Step::Update(true)]) {
            match step {
                Step::Service(index, headless) => {
                    let spec = format!(
                        "{{selector: a=b, headless: {headless}, ports: [{{name: p, port: 80}}, {{name: q, port: 81}}], \
                         dns: {{names: [n{index}.example.com, both.example.com, x.heddle.internal]}}}}");
                    let vip = format!("10.96.1.{index}");
                    let vips: &[&str] = if headless { &[] } else { &[&vip] };
                    world.service(SERVICES[index], &spec, vips);
                    changed.push(key(SERVICES[index]));
                }
                Step::Endpoints(index, endpoints) => {
                    let endpoints: Vec<_> = endpoints
                        .into_iter()
                        .map(|(host, weight)| (format!("172.17.0.{host}:80").parse().unwrap(), weight))
                        .collect();
                    world.endpoints(SERVICES[index], "p", endpoints);
                    changed.push(key(SERVICES[index]));
                }
                Step::Delete(index) => {
                    world.delete(SERVICES[index]);
                    changed.push(key(SERVICES[index]));
                }
                Step::Update(told) => {
                    let hint = told.then(|| std::mem::take(&mut changed));
                    changed.clear();
                    let table = updater.update(&world.snapshot(), hint.as_deref());
                    let anew = Updater::new(servers.clone(), serials.clone(), 2).update(&world.snapshot(), None);
                    prop_assert_eq!(all(&table), all(&anew));
                }
            }
        }
    }
}

#[test]
fn one_change_among_many_services_leaves_the_other_entries_where_they_are() {
    let mut world = World::new();
    for index in 0..200 {
        let spec = "{selector: a=b, headless: true, ports: [{name: p, port: 80}]}";
        world.service(&format!("many/s{index}"), spec, &[]);
        let address = format!("172.17.1.{index}:80").parse().unwrap();
        world.endpoints(&format!("many/s{index}"), "p", [(address, 1)]);
    }
    let serials = Arc::<Serials>::default();
    let mut updater = Updater::new(Vec::new(), serials.clone(), 1);
    let before = all(&updater.update(&world.snapshot(), None));
    assert!(serials.give(world.snapshot().epoch).is_some());
    world.endpoints("many/s7", "p", [("172.17.2.7:80".parse().unwrap(), 1)]);
    let after = all(&updater.update(&world.snapshot(), Some(&[key("many/s7")])));
    let moved: Vec<String> = after
        .iter()
        .filter(|(name, entry)| !before.get(*name).is_some_and(|b| b.is_same(entry)))
        .map(|(name, _)| String::from_utf8_lossy(name).into_owned())
        .collect();
    // The service, its port, the new endpoint with its reverse name, and the apex with its serial.
    assert_eq!(moved.len(), 5, "{moved:?}");
}
