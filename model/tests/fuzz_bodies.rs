//! Runs the bodies of the fuzz targets without libFuzzer: on their seeds and on random bytes.

use std::path::Path;

use proptest::prelude::*;

#[path = "../../fuzz/src/lib.rs"]
mod bodies;

fn on_every_seed(target: &str, body: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/seeds")
        .join(target);
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).expect("the seeds are part of the repository") {
        let seed = std::fs::read(entry.expect("a readable folder").path()).expect("a seed");
        body(&seed);
        // Cut short at every byte, as a file is that is read while it is being written.
        (0..seed.len()).for_each(|length| body(&seed[..length]));
        count += 1;
    }
    assert!(count > 0, "no seeds in {}", folder.display());
}

#[test]
fn the_seeds_pass() {
    on_every_seed("selector", bodies::selector);
    on_every_seed("manifest", bodies::manifest);
    on_every_seed("units", bodies::units);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(data in proptest::collection::vec(any::<u8>(), 0..200)) {
        bodies::selector(&data);
        bodies::manifest(&data);
        bodies::units(&data);
    }

    #[test]
    fn texts_near_the_grammars_never_panic(
        selector in "[xyz](=|==|!=| in | notin )?(\\(?[ab,]{0,4}\\)?)?(,[!xyz]{1,2})?\n(x=a\n|y=b\n|z=\n){0,3}",
        manifest in "(kind: (Service|Endpoint)\n|metadata: \\{name: [a-z.-]{1,3}\\}\n|spec:\n( [a-z]{1,5}: [^\n]{0,6}\n){0,3}|---\n){0,6}",
        units in "[0-9]{1,25}(\\.[0-9]{1,12})?(h|m|s|ms|us|ns|B|KiB|kB|TiB)?([0-9]{1,3}(m|s))?|[1-6][0-9]{2}(-[1-6][0-9]{2})?(,[0-9]{3}){0,2}",
    ) {
        bodies::selector(selector.as_bytes());
        bodies::manifest(manifest.as_bytes());
        bodies::units(units.as_bytes());
    }
}
