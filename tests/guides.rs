//! The README's and getting-started's commands, run as they are written.

mod support;

use std::path::Path;
use std::process::Command;

use support::netns::Netns;
use support::node::{Node, NodeOptions};
use support::{missing_program, not_root, requirement};

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

/// Getting-started's lines beyond those that build, install or need Docker: each must do what the text says.
#[test]
fn getting_started_works_line_by_line() {
    let needs = ["sh", "curl", "ip", "nsenter"];
    let missing = not_root().or_else(|| missing_program(&needs));
    if !requirement("getting-started, on a host of its own", missing) {
        return;
    }
    let netns = Netns::new();
    let node = Node::start(&NodeOptions {
        netns: Some(&netns),
        ..NodeOptions::default()
    });
    let folder = tempfile::tempdir().unwrap();
    let text = page("docs/getting-started.md");
    let (_, section) = text
        .split_once("\n## A service\n")
        .expect("a section of that name");
    let (section, _) = section.split_once("\n## ").expect("another one after it");
    // The text names the file that each block of YAML is written to.
    let mut script = format!(
        "set -eu\nexport HEDDLE_SERVER={}\nPATH={}:$PATH\n",
        node.server(),
        Path::new(env!("CARGO_BIN_EXE_heddle"))
            .parent()
            .unwrap()
            .display()
    );
    let mut names = section
        .split("Write `")
        .skip(1)
        .filter_map(|rest| rest.split('`').next());
    let mut commands = 0;
    for (language, block) in blocks(section) {
        match language.as_str() {
            "yaml" => {
                let name = names.next().expect("each file has a name");
                std::fs::write(folder.path().join(name), block).unwrap();
            }
            "sh" => {
                for line in block.lines() {
                    commands += 1;
                    script.push_str(&format!("echo '$ {}'\n{line}\n", line.replace('\'', "")));
                    // A reader takes longer than a script: what is said to be so by then is waited for.
                    let wait = match line {
                        l if l.starts_with("heddle whoami") => {
                            "until curl -sf http://127.0.0.1:18080/id; do sleep 0.05; done"
                        }
                        l if l.starts_with("heddle register") => {
                            "until heddle get endpoints -n shop | grep -q ready; do sleep 0.05; done"
                        }
                        l if l.starts_with("heddle apply") => {
                            "until heddle get services web -n shop >/dev/null 2>&1; do sleep 0.05; done"
                        }
                        l if l.starts_with("heddle drain") => {
                            "until heddle explain web -n shop | grep -q 'just trying'; do sleep 0.05; done"
                        }
                        _ => continue,
                    };
                    script.push_str(wait);
                    script.push('\n');
                }
            }
            _ => {}
        }
    }
    assert!(commands >= 14, "{commands} commands: {section}");
    script.push_str("kill %1 2>/dev/null || true\n");
    let output = netns
        .command("timeout")
        .args(["--kill-after=5", "120", "bash", "-c", &script])
        .current_dir(folder.path())
        .output()
        .expect("bash runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success(),
        "{}: {said}\n{errors}",
        output.status
    );
    let after = |command: &str| -> String {
        let (_, rest) = said
            .split_once(&format!("$ {command}"))
            .unwrap_or_else(|| panic!("{command}: {said}"));
        rest.split("\n$ ").next().unwrap_or_default().to_owned()
    };
    assert!(
        after("heddle apply").contains("service shop/web created"),
        "{said}"
    );
    assert!(
        after("heddle explain").contains("is refused: service shop/web has no endpoints"),
        "{said}"
    );
    assert!(
        after("heddle describe").contains("takes new work"),
        "{said}"
    );
    assert!(after("curl -s").contains("web-1"), "{said}");
    assert!(after("heddle events").contains("WorkloadDrained"), "{said}");
    assert!(
        after("heddle delete").contains("service shop/web deleted"),
        "{said}"
    );
    assert!(said.lines().all(|l| !l.contains('\x1b')), "{said}");
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
