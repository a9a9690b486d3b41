//! The README's and getting-started's commands, run as they are written.

mod support;

use std::fs::File;
use std::path::Path;
use std::process::Command;

use support::docker::{self, Dockerd};
use support::{image, missing_program, requirement};

fn page(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The fenced blocks of a page: language and text.
fn blocks(page: &str) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let text: Vec<&str> = lines
                .by_ref()
                .take_while(|l| !l.starts_with("```"))
                .collect();
            all.push((language.to_owned(), text.join("\n")));
        }
    }
    all
}

#[test]
fn every_block_says_what_it_is() {
    let known = ["sh", "yaml", "toml", ""];
    for (path, least) in [("README.md", 5), ("docs/getting-started.md", 9)] {
        let all = blocks(&page(path));
        assert!(all.len() >= least, "{path}");
        for (language, text) in all {
            assert!(
                known.contains(&language.as_str()),
                "{path}: {language}: {text}"
            );
        }
    }
}

#[test]
fn the_readmes_first_command_is_the_demo() {
    let readme = page("README.md");
    let first = blocks(&readme)
        .into_iter()
        .find(|(language, _)| language == "sh")
        .unwrap();
    assert_eq!(first.1, "cargo run -- demo");
    // What `cargo run` starts is this binary: the manifest names it, and tests/demo.rs runs it.
    let manifest = page("Cargo.toml");
    assert!(manifest.contains("default-run = \"heddle\""));
}

/// What is not as on the reader's machine: `sudo`, as the test is root already; and `cargo`, which would build for minutes
/// what is built: `cargo build --release` puts the binary of the tests where it would put its own, `cargo run -- demo` runs
/// that one for some seconds, and then ends it as Ctrl-C does.
const SHIMS: &str = r#"
mkdir "$WORK/shims"
printf '#!/bin/sh\nexec "$@"\n' > "$WORK/shims/sudo"
cat > "$WORK/shims/cargo" <<'END'
#!/bin/sh
case "$1 $2" in
"build --release") mkdir -p target/some-target/release && cp "$BINARY" target/some-target/release/heddle ;;
"run --") shift 2; timeout --signal=INT 6 "$BINARY" "$@" || [ $? = 124 ] ;;
*) echo "cargo $*: what is that?" >&2; exit 1 ;;
esac
END
chmod +x "$WORK/shims/sudo" "$WORK/shims/cargo"
export PATH="$WORK/shims:$PATH"
"#;

/// Copies-on-write, in memory, of the folders that the page writes to, so that nothing of it outlives the test; and Docker's
/// socket where Docker has it (`/var/run` is `/run`). All of it is seen within the test's own mount namespace only.
const COPIES: &str = r#"
set -eu
# Nothing of this may ever be done to the machine itself.
[ "$(readlink /proc/self/ns/mnt)" != "$MACHINE" ]
WORK=$(mktemp -d)
mount -t tmpfs tmpfs "$WORK"
for folder in /usr/bin /run /var/lib; do
    copy="$WORK/copies$folder"
    mkdir -p "$copy/upper" "$copy/work"
    mount -t overlay overlay -o "lowerdir=$folder,upperdir=$copy/upper,workdir=$copy/work" "$folder"
done
rm -rf /run/docker.sock /run/heddle /var/lib/heddle /usr/bin/heddle
ln -s "$SOCKET" /run/docker.sock
# Process ids are those of a namespace, and what is named after them must not meet another's.
mkdir "$WORK/home" "$WORK/tmp"
export TMPDIR="$WORK/tmp"
cd "$WORK/home"
"#;

/// The commands of a page from top to bottom, each as it is written: those of its blocks, and the `docker run` of its
/// sentences. Files are written when their block comes. `IMAGE` is any image that exposes one port.
fn script_of(page: &str) -> String {
    let mut script = String::new();
    let mut files = page
        .split("Write `")
        .skip(1)
        .filter_map(|rest| rest.split('`').next());
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(language) = line.strip_prefix("```") else {
            let code = line.split('`').skip(1).step_by(2);
            for command in code.filter(|code| code.starts_with("docker run")) {
                script.push_str(&step(&command.replace("IMAGE", "my/web")));
            }
            continue;
        };
        let block = lines.by_ref().take_while(|l| !l.starts_with("```"));
        if language == "yaml" {
            // The README's only one is the file of the command below it.
            let name = files.next().unwrap_or("web.yaml");
            let text: Vec<&str> = block.collect();
            script.push_str(&format!("cat > {name} <<'END'\n{}\nEND\n", text.join("\n")));
        } else {
            block.for_each(|command| script.push_str(&step(command)));
        }
    }
    script
}

/// A command, and the time that a reader takes until the next: what is said to be so by then is waited for.
fn step(command: &str) -> String {
    let ready = "until [ $(heddle get endpoints -A | grep -c ready) -ge $(docker ps --quiet | wc -l) ]; do sleep 0.05; done";
    let bare = command.trim_start_matches("sudo ");
    let (run, wait) = match bare {
        // In a terminal of its own.
        l if l.starts_with("heddle up") => (
            format!("{{ {command}\n}} > up.log 2>&1 &"),
            "until curl -sf http://127.0.0.1:7070/readyz > /dev/null; do sleep 0.05; done",
        ),
        // Until Ctrl-C.
        l if l.starts_with("heddle events") && l.contains(" -w") => {
            let words = command.split('#').next().unwrap_or_default();
            (format!("timeout 1 {words} || [ $? = 124 ]"), "")
        }
        l if l.starts_with("heddle whoami") => (
            command.to_owned(),
            "until curl -sf http://127.0.0.1:18080/id; do sleep 0.05; done",
        ),
        l if l.starts_with("heddle register") => (
            command.to_owned(),
            "until heddle get endpoints -A | grep web-1 | grep -q ready; do sleep 0.05; done",
        ),
        l if l.starts_with("docker run") => (command.to_owned(), ready),
        l if l.starts_with("heddle apply") => (
            command.to_owned(),
            "until heddle get services web -n shop > /dev/null 2>&1; do sleep 0.05; done",
        ),
        l if l.starts_with("heddle drain") => (
            command.to_owned(),
            "until heddle explain web -n shop | grep -q 'just trying'; do sleep 0.05; done",
        ),
        _ => (command.to_owned(), ""),
    };
    format!("echo '$ {}'\n{run}\n{wait}\n", command.replace('\'', ""))
}

/// Plays a page's commands on a host of its own that has Docker; what they print.
fn play(page: &str) -> Option<String> {
    let missing = missing_program(&["bash", "curl", "unshare", "timeout"]);
    if !docker::ready() || !requirement("the pages' commands", missing) {
        return None;
    }
    let docker = Dockerd::start("guides");
    let tar = File::open(image::tar()).expect("the image is there");
    let changes = ["EXPOSE 8080", r#"ENTRYPOINT ["/heddle", "whoami"]"#];
    let [expose, entry] = changes.map(|change| format!("--change={change}"));
    let imported = docker
        .command(&["import", &expose, &entry, "-", "my/web"])
        .stdin(tar)
        .output()
        .expect("docker runs");
    assert!(imported.status.success(), "{imported:?}");
    let script = format!(
        "{COPIES}{SHIMS}{}kill $(jobs -p) 2> /dev/null || true\nwait\n",
        script_of(page)
    );
    let machine = std::fs::read_link("/proc/self/ns/mnt").expect("a mount namespace");
    let output = docker
        .within("unshare")
        .args(["--mount", "timeout", "--kill-after=5", "150"])
        .args(["bash", "-c", &script])
        .env("BINARY", image::context().join("heddle"))
        .env("SOCKET", docker.socket())
        .env("MACHINE", machine)
        .env_remove("HEDDLE_SERVER")
        .env_remove("DOCKER_HOST")
        .output()
        .expect("bash runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success(),
        "{}: {said}\n{errors}",
        output.status
    );
    assert!(!said.contains('\x1b'), "{said}");
    Some(said)
}

/// What a command printed.
fn after<'s>(said: &'s str, command: &str) -> &'s str {
    let (_, rest) = said
        .split_once(&format!("$ {command}"))
        .unwrap_or_else(|| panic!("{command}: {said}"));
    rest.split("\n$ ").next().unwrap_or_default()
}

#[test]
fn getting_started_works_line_by_line() {
    let Some(said) = play(&page("docs/getting-started.md")) else {
        return;
    };
    for (command, answer) in [
        ("cargo run -- demo", "A node of heddle"),
        ("sudo heddle doctor", "ok    docker"),
        ("heddle apply", "service shop/web created"),
        (
            "heddle explain",
            "is refused: service shop/web has no endpoints",
        ),
        ("heddle get endpoints", "ready"),
        ("heddle describe", "takes new work"),
        ("heddle events", "WorkloadDrained"),
        ("heddle delete", "service shop/web deleted"),
    ] {
        assert!(after(&said, command).contains(answer), "{command}: {said}");
    }
    assert!(after(&said, "curl -s").lines().count() > 1, "{said}");
    assert!(said.contains("$ docker run"), "{said}");
}

/// All of its commands but `tools/test`, which runs this.
#[test]
fn the_readme_works_line_by_line() {
    let readme = page("README.md");
    let section = |name: &str| {
        let (_, rest) = readme.split_once(&format!("\n## {name}\n")).expect(name);
        rest.split("\n## ").next().unwrap_or_default().to_owned()
    };
    let Some(said) = play(&(section("See it work") + &section("Use it"))) else {
        return;
    };
    for (command, answer) in [
        ("sudo heddle doctor", "ok    docker"),
        ("heddle apply", "service shop/web created"),
        ("heddle get endpoints", "ready"),
        ("heddle get workloads", "web"),
        ("heddle explain", "passing"),
        ("heddle events", "EndpointReady"),
        ("heddle top", "shop/web"),
    ] {
        assert!(after(&said, command).contains(answer), "{command}: {said}");
    }
    assert_eq!(said.matches("$ docker run").count(), 2, "{said}");
}

#[test]
fn every_heddle_command_in_the_pages_is_one_that_there_is() {
    let mut pages = vec!["README.md".to_owned()];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in ["docs", "docs/coming-from"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".md") {
                pages.push(format!("{folder}/{name}"));
            }
        }
    }
    let help = Command::new(env!("CARGO_BIN_EXE_heddle"))
        .arg("--help")
        .output()
        .unwrap();
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for path in pages {
        for (_, block) in blocks(&page(&path)) {
            for line in block
                .lines()
                .filter_map(|l| l.trim_start().strip_prefix("heddle "))
            {
                let command = line.split_whitespace().next().unwrap_or_default();
                assert!(
                    help.lines()
                        .any(|l| l.split_whitespace().next() == Some(command)),
                    "{path}: heddle {line}: there is no such command"
                );
            }
        }
    }
}
