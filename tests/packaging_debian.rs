//! The Debian package: built as `make deb` does, installed, removed and purged with dpkg, on a copy of this system.

mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use support::{image, missing_program, not_root, requirement};

#[track_caller]
fn text(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    said
}

/// What the script prints between two of its marks.
fn part<'s>(said: &'s str, name: &str) -> Vec<&'s str> {
    let (_, rest) = said
        .split_once(&format!("== {name}\n"))
        .unwrap_or_else(|| panic!("{name}: {said}"));
    let part = rest.split("== ").next().unwrap_or_default();
    part.lines().collect()
}

/// Builds the package of the binary that the tests run, which is what `cargo build --release` would have built. Compressed
/// for speed.
fn build(folder: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let binary = image::context().join("heddle");
    let made = Command::new("make")
        .arg("deb-of")
        .arg(format!("HEDDLE={}", binary.display()))
        .arg(format!("OUT={}", folder.join("heddle.deb").display()))
        .arg("DEB_OPTIONS=--fast")
        .current_dir(root)
        .output()
        .expect("make runs");
    text(&made);
}

/// What dpkg itself notes of a package, what it writes anew whenever it runs, and what looking at the unit leaves.
fn of_dpkg(path: &str) -> bool {
    [
        "./var/lib/dpkg/",
        "./var/log/",
        "./var/cache/",
        "./etc/ld.so.cache",
        "./tmp/",
        "./run/systemd/systemd-units-load",
    ]
    .iter()
    .any(|folder| path.starts_with(folder))
}

#[test]
fn the_package_installs_what_it_says_and_purged_leaves_nothing() {
    let programs = ["cargo-deb", "make", "dpkg", "unshare", "chroot", "find"];
    let missing = not_root().or_else(|| missing_program(&programs));
    if !requirement("the Debian package", missing) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    build(folder.path());
    // A copy-on-write of the whole system, in memory and in a mount namespace of its own: what was written is what lies in
    // its upper folder, and all of it goes with the process.
    const SCRIPT: &str = r#"
set -eu
mount -t tmpfs tmpfs "$1/system"
mkdir "$1/system/upper" "$1/system/work" "$1/system/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/system/upper,workdir=$1/system/work" "$1/system/root"
cp "$1/heddle.deb" "$1/system/root/tmp/heddle.deb"
written() { echo "== $1"; (cd "$2/system/upper" && find . ! -type d | sort); }
inside() { chroot "$root" "$@"; }
root="$1/system/root"
mount -t proc proc "$root/proc"
mount -t devtmpfs dev "$root/dev" 2> /dev/null || mount --bind /dev "$root/dev"
written before "$1"
inside dpkg --install /tmp/heddle.deb >&2
written installed "$1"
echo "== listed"
inside dpkg --listfiles heddle
echo "== version"
inside /usr/bin/heddle --version
echo "== check"
inside /usr/bin/heddle check /etc/heddle/heddle.toml
echo "== man"
inside test -s /usr/share/man/man1/heddle-up.1.gz && echo there
echo "== unit"
inside systemd-analyze verify /lib/systemd/system/heddle.service 2>&1 | grep heddle.service || echo well
inside mkdir -p /var/lib/heddle
inside touch /var/lib/heddle/registry
inside dpkg --remove heddle >&2
written removed "$1"
inside dpkg --purge heddle >&2
written purged "$1"
echo "== folders"
inside ls -d /etc/heddle /var/lib/heddle /usr/share/heddle /usr/share/doc/heddle 2> /dev/null || true
"#;
    std::fs::create_dir(folder.path().join("system")).unwrap();
    let played = Command::new("unshare")
        .args(["--mount", "--net", "bash", "-c", SCRIPT, "bash"])
        .arg(folder.path())
        .output()
        .expect("unshare runs");
    let said = text(&played);
    let listed: BTreeSet<&str> = part(&said, "listed").into_iter().collect();
    for file in [
        "/usr/bin/heddle",
        "/usr/lib/systemd/system/heddle.service",
        "/etc/heddle/heddle.toml",
        "/usr/share/man/man1/heddle.1.gz",
        "/usr/share/bash-completion/completions/heddle",
        "/usr/share/zsh/vendor-completions/_heddle",
        "/usr/share/fish/vendor_completions.d/heddle.fish",
        "/usr/share/heddle/prometheus/alerts.yml",
        "/usr/share/heddle/grafana/heddle.json",
        "/usr/share/doc/heddle/README.md",
        "/usr/share/doc/heddle/copyright",
    ] {
        assert!(
            listed.contains(file),
            "{file} is not installed: {listed:#?}"
        );
    }
    let version = format!("heddle {}", env!("CARGO_PKG_VERSION"));
    assert_eq!(part(&said, "version"), [version.as_str()], "{said}");
    assert_eq!(part(&said, "man"), ["there"], "{said}");
    assert_eq!(part(&said, "unit"), ["well"], "{said}");
    let written = |when: &str| -> Vec<&str> {
        let mut files = part(&said, when);
        files.retain(|path| !of_dpkg(path));
        files
    };
    // Removed, the configuration and what the node knows stay; purged, nothing does.
    let kept = written("removed");
    assert!(kept.contains(&"./etc/heddle/heddle.toml"), "{kept:#?}");
    assert!(kept.contains(&"./var/lib/heddle/registry"), "{kept:#?}");
    assert!(!kept.contains(&"./usr/bin/heddle"), "{kept:#?}");
    assert_eq!(written("purged"), written("before"), "{said}");
    assert_eq!(part(&said, "folders"), [""; 0], "{said}");
}
