//! The image that the containers of the tests run: our own static binary and nothing else. There may be no
//! registry to pull from, and none is needed.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The image as a tar file for `docker import`: `/heddle` alone. Made once for each build of the binary, and
/// shared by all tests of that build.
pub fn tar() -> PathBuf {
    made().join("image.tar")
}

/// A folder that holds `heddle` alone: the context of `docker build`.
pub fn context() -> PathBuf {
    made().join("root")
}

fn made() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(make)
}

fn make() -> PathBuf {
    let binary = Path::new(env!("CARGO_BIN_EXE_heddle"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let built = fs::metadata(binary).expect("cannot see the binary that the tests run");
    let name = format!(
        "image-{}-{}-{}",
        built.len(),
        built.mtime(),
        built.mtime_nsec()
    );
    let made = folder.join(&name);
    if made.exists() {
        return made;
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("image-") {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    // Tests of several processes may make it at once: each in a folder of its own, and the first to be named stays.
    let temporary = tempfile::tempdir_in(folder).expect("cannot make the image");
    let root = temporary.path().join("root");
    fs::create_dir(&root).expect("cannot make the image");
    let inside = root.join("heddle");
    // Without its debug information, which is most of it; as it is where `strip` is not installed.
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(&inside).arg(binary);
    if !strip.status().is_ok_and(|status| status.success()) {
        fs::copy(binary, &inside).expect("cannot copy the binary that the tests run");
    }
    let packed = Command::new("tar")
        .args(["--create", "--owner=0", "--group=0", "--file"])
        .arg(temporary.path().join("image.tar"))
        .arg("--directory")
        .arg(&root)
        .arg("heddle")
        .status();
    assert!(packed.is_ok_and(|status| status.success()), "tar failed");
    let temporary = temporary.keep();
    if fs::rename(&temporary, &made).is_err() {
        let _ = fs::remove_dir_all(&temporary);
        assert!(made.exists(), "cannot name the image");
    }
    made
}
