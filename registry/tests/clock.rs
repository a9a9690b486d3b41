//! Time in the registry is a monotonic clock's: a wall clock that jumps, forwards or back, ends no lease, delays no watch
//! and hurries no comparison. Nothing in these files could tell, for they never look at it.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of sources").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn nothing_in_the_store_and_the_follower_looks_at_the_wall_clock() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![root.join("follow.rs"), root.join("metrics.rs")];
    sources(&root.join("follow"), &mut files);
    sources(&root.join("store"), &mut files);
    assert!(files.len() > 15, "{files:?}");
    for file in files {
        let text = fs::read_to_string(&file).expect("a source");
        for clock in ["SystemTime", "Timestamp::now"] {
            assert!(!text.contains(clock), "{} uses {clock}", file.display());
        }
    }
}

#[test]
fn joining_looks_at_the_wall_clock_only_for_what_is_shown() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/join.rs");
    let text = fs::read_to_string(file).expect("a source");
    let shown = ["session:", "since:", "let until ="];
    for line in text.lines().filter(|line| line.contains("Timestamp::now")) {
        assert!(shown.iter().any(|name| line.contains(name)), "{line}");
    }
}
