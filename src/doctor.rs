//! `heddle doctor`: what this machine has and lacks for a node, each finding with its mend.
//!
//! It looks and changes nothing; a node may run meanwhile or not.
//!
//! # Layout
//! - this file: the findings, their order and their print
//! - `docker`, `etcd`, `ports`, `vips`, `dns`, `limits`: one kind of thing each
//! - `netlink`: which nftables tables there are
//! - `date`: the dates of HTTP

mod date;
mod dns;
mod docker;
mod etcd;
mod limits;
mod netlink;
mod ports;
mod vips;

use std::path::PathBuf;

use registry::follow::chain;
use serde::Serialize;

use crate::admin::ready::Readiness;
use crate::cli::Failure;
use crate::cli::client::Client;
use crate::cli::describe::text::Page;
use crate::cli::get::out;
use crate::config::{Backend, Config, DEFAULT_PATH};

/// What `heddle doctor` takes on its command line.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The configuration that the node has or will have; without it /etc/heddle/heddle.toml
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The findings as JSON
    #[arg(long)]
    json: bool,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// As it should be.
    Ok,
    /// Could not be looked at, and why.
    Skipped,
    /// Works, and may not for long or not for all.
    Warn,
    /// Does not work.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    level: Level,
    about: &'static str,
    what: String,
    /// What to do; empty where nothing is to be done.
    #[serde(skip_serializing_if = "String::is_empty")]
    mend: String,
}

impl Finding {
    fn ok(about: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(Level::Ok, about, what, "")
    }

    fn skipped(about: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(Level::Skipped, about, what, "")
    }

    fn warn(about: &'static str, what: impl Into<String>, mend: impl Into<String>) -> Finding {
        Finding::new(Level::Warn, about, what, mend)
    }

    fn fail(about: &'static str, what: impl Into<String>, mend: impl Into<String>) -> Finding {
        Finding::new(Level::Fail, about, what, mend)
    }

    fn new(
        level: Level,
        about: &'static str,
        what: impl Into<String>,
        mend: impl Into<String>,
    ) -> Finding {
        Finding {
            level,
            about,
            what: what.into(),
            mend: mend.into(),
        }
    }
}

/// Looks at everything. Fails where a finding does.
pub async fn run(options: Options) -> Result<(), Failure> {
    let findings = match Config::load(options.config.as_deref()) {
        Ok(config) => {
            let mut all = vec![Finding::ok("config", source(&options, &config))];
            all.extend(look(&config).await);
            all
        }
        Err(error) => vec![Finding::fail(
            "config",
            chain(&error),
            "correct it (heddle check FILE tells the same); the rest was not looked at",
        )],
    };
    let text = match options.json {
        true => serde_json::to_string_pretty(&findings)
            .map(|text| text + "\n")
            .map_err(|e| Failure::Failed(e.to_string()))?,
        false => page(&findings),
    };
    out(&text)?;
    let failed = findings.iter().filter(|f| f.level == Level::Fail).count();
    match failed {
        0 => Ok(()),
        n => Err(Failure::Failed(format!(
            "doctor: {n} of {} findings must be mended",
            findings.len()
        ))),
    }
}

fn source(options: &Options, config: &Config) -> String {
    let node = &config.node;
    match &options.config {
        Some(path) => format!("{}, for node {node}", path.display()),
        None if std::path::Path::new(DEFAULT_PATH).exists() => {
            format!("{DEFAULT_PATH}, for node {node}")
        }
        None => format!("all defaults, as there is no {DEFAULT_PATH}; for node {node}"),
    }
}

async fn look(config: &Config) -> Vec<Finding> {
    let mut all = Vec::new();
    let running = node(config, &mut all).await;
    all.extend(docker::look(config).await);
    match &config.backend {
        Backend::Embedded => all.push(ports::state_dir(config, running)),
        Backend::Etcd(etcd) => all.extend(etcd::look(etcd, &config.prefix).await),
    }
    all.extend(ports::look(config, running));
    all.extend(vips::look(config));
    all.push(dns::look(config, running).await);
    all.extend(limits::look());
    all
}

/// The node that runs here, if any, and what it says of itself.
async fn node(config: &Config, all: &mut Vec<Finding>) -> bool {
    let server = format!("unix://{}", config.admin_socket.display());
    let Ok(client) = Client::new(Some(&server)) else {
        return false;
    };
    if tokio::net::UnixStream::connect(&config.admin_socket)
        .await
        .is_err()
    {
        all.push(Finding::skipped(
            "node",
            format!("none answers at {server}: what only a running one shows was not looked at"),
        ));
        return false;
    }
    match client.get::<Readiness>("/readyz").await {
        Ok(ready) if ready.reasons.is_empty() => {
            all.push(Finding::ok(
                "node",
                format!("{} runs and is ready", ready.node),
            ));
        }
        Ok(ready) => {
            let mend = "see \"Health\" in docs/operations.md";
            all.extend(ready.reasons.iter().map(|r| Finding::warn("node", r, mend)));
        }
        Err(failure) => {
            let mend = "see its log; while it drains this passes by itself";
            all.push(Finding::warn("node", failure.to_string(), mend));
        }
    }
    true
}

fn page(findings: &[Finding]) -> String {
    let mut page = Page::default();
    for finding in findings {
        let level = match finding.level {
            Level::Ok => "ok",
            Level::Skipped => "-",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        page.hanging(
            &format!("{level:5} {:9} {}", finding.about, finding.what),
            18,
        );
        if !finding.mend.is_empty() {
            page.hanging(&format!("{:16}mend: {}", "", finding.mend), 24);
        }
    }
    page.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_is_printed_with_its_mend_below_it_in_100_columns() {
        let long = "word ".repeat(30);
        let text = page(&[
            Finding::ok("docker", "20.10"),
            Finding::fail("etcd", "connection refused", format!("start it {long}")),
        ]);
        assert!(
            text.starts_with("  ok    docker    20.10\n  FAIL  etcd      connection refused\n")
        );
        assert!(
            text.contains("\n                  mend: start it word"),
            "{text}"
        );
        assert!(text.lines().all(|l| l.chars().count() <= 100), "{text}");
    }
}
