//! What is shown: who serves, what to try, and traffic that moves.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::folder::Folder;
use super::load::{self, Answers, Load};
use super::node::Node;
use super::services::{API, BACKENDS, NAMESPACE, Services, WEB};
use super::{Backends, End, say, unless_told};
use crate::cli::Failure;

const REQUESTS_PER_SECOND: u32 = 20;
/// How many seconds each step is watched for.
const WATCHED: usize = 4;
/// A backend that starts is waited for until it answers.
const READY: Duration = Duration::from_secs(30);

/// Brings everything up, shows it, and goes on until told to end. What was brought up is in `node` and `backends`,
/// whatever comes of this.
pub async fn run(
    folder: &Folder,
    node: &mut Option<Node>,
    backends: &mut Backends,
    told: &CancellationToken,
) -> Result<(), End> {
    let docker = match backends {
        Backends::Processes(_) => None,
        Backends::Containers(all) => {
            say("making an image of this binary\n")?;
            all.import().await?;
            Some(all.url.clone())
        }
    };
    let node = node.insert(Node::start(folder.path(), docker.as_deref())?);
    unless_told(told, node.ready()).await??;
    let services = Services::apply(node).await?;
    for (service, name) in BACKENDS {
        if told.is_cancelled() {
            return Err(End::Told);
        }
        backends.start(node, service, name).await?;
    }
    for (address, all) in [
        (services.web, &["web-1", "web-2"][..]),
        (services.api, &["api-1"]),
    ] {
        unless_told(told, until_answers(address, all)).await??;
    }
    say(&what_there_is(node, &services, backends))?;
    let load = Load::start(services.web, REQUESTS_PER_SECOND);
    let result = steps(node, backends, &load, told).await;
    let (total, failed, why) = load.with(|c| (c.total, c.failed, c.why.clone()));
    let why = if failed > 0 {
        format!(" ({why})")
    } else {
        String::new()
    };
    say(&format!("\n{total} requests, {failed} failed{why}\n")).ok();
    result
}

async fn until_answers(address: std::net::SocketAddr, all: &[&str]) -> Result<(), Failure> {
    let waiting = async {
        let mut missing = all.to_vec();
        while !missing.is_empty() {
            match load::ask(address).await {
                Ok(name) => missing.retain(|m| **m != name),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(READY, waiting).await.map_err(|_| {
        let all = all.join(", ");
        Failure::Failed(format!(
            "demo: {all} are not reached at {address} within {READY:?}"
        ))
    })
}

/// The steps of the tour. Each is said before it is done.
async fn steps(
    node: &Node,
    backends: &mut Backends,
    load: &Load,
    told: &CancellationToken,
) -> Result<(), End> {
    let (stopped, killed) = match backends {
        Backends::Processes(_) => (
            "heddle drain workload web-2, and its process is told to end".to_owned(),
            "kill -9 of web-1: nobody is told, its check finds out".to_owned(),
        ),
        Backends::Containers(all) => (
            format!("docker stop {}", all.container("web-2")),
            format!("docker kill {}", all.container("web-1")),
        ),
    };
    say(&format!(
        "Now {REQUESTS_PER_SECOND} requests a second go to {NAMESPACE}/web. Who answers:\n"
    ))?;
    watch(load, told).await?;
    say(&format!("{stopped}\n"))?;
    backends.stop(node, "web-2").await?;
    watch(load, told).await?;
    say("web-3 comes up, with the same label\n")?;
    backends.start(node, "web", "web-3").await?;
    watch(load, told).await?;
    say(&format!("{killed}\n"))?;
    backends.kill("web-1").await?;
    watch(load, told).await?;
    say("web-4 comes up\n")?;
    backends.start(node, "web", "web-4").await?;
    watch(load, told).await?;
    let (total, failed) = load.with(|c| (c.total, c.failed));
    say(&format!(
        "\nThat was the tour: {total} requests so far, {failed} failed. They go on; so does the node, for what you try.\n\
         Ctrl-C ends it and leaves nothing behind.\n"
    ))?;
    told.cancelled().await;
    Err(End::Told)
}

/// Shows, second by second, who answers.
async fn watch(load: &Load, told: &CancellationToken) -> Result<(), End> {
    load.answers();
    for _ in 0..WATCHED {
        unless_told(told, tokio::time::sleep(Duration::from_secs(1))).await?;
        say(&line(&load.answers()))?;
    }
    Ok(())
}

fn line(answers: &Answers) -> String {
    let bar = |(name, count): (&String, &u32)| {
        let bar = "#".repeat((*count).min(30) as usize);
        format!("{name} {count:2} {bar:22}")
    };
    let all: Vec<String> = answers.iter().map(bar).collect();
    match all.as_slice() {
        [] => "    nobody\n".to_owned(),
        all => format!("    {}\n", all.join(" ").trim_end()),
    }
}

fn what_there_is(node: &Node, services: &Services, backends: &Backends) -> String {
    let folder = std::env::current_exe().ok();
    let folder = folder.as_deref().and_then(std::path::Path::parent);
    let folder = folder.map_or(String::new(), |f| f.display().to_string());
    let (kind, workload) = match backends {
        Backends::Processes(_) => ("processes of this machine", "web-1".to_owned()),
        Backends::Containers(all) => ("containers of this machine", all.container("web-1")),
    };
    let zone = "svc.heddle.internal";
    let Services { web, api } = services;
    let mut text = format!(
        "\nA node of heddle {} runs, with {kind} in two services:\n\n\
         \x20 {:10} {:22} {:18} ENDPOINTS\n\
         \x20 {:10} {:22} {:18} web-1, web-2; not web-canary\n\
         \x20 {:10} {:22} {:18} api-1\n\n\
         Try, in another terminal (each line works as it stands):\n\n",
        env!("CARGO_PKG_VERSION"),
        "SERVICE",
        "VIRTUAL IP",
        "SELECTOR",
        "shop/web",
        web.to_string(),
        WEB,
        "shop/api",
        api.to_string(),
        API,
    );
    let mut line = |command: &str, why: &str| match why {
        "" => text.push_str(&format!("  {command}\n")),
        why => text.push_str(&format!("  {command:60} # {why}\n")),
    };
    line(&format!("export HEDDLE_SERVER={}", node.server), "");
    line(&format!("export PATH={folder}:$PATH"), "");
    line(
        &format!("curl -s http://{web}/id"),
        "who answers; again: another",
    );
    line(
        &format!("curl -s http://{api}/"),
        "what a request looks like there",
    );
    let dig = format!(
        "dig +short @{} -p {} web.{NAMESPACE}.{zone}",
        node.dns.ip(),
        node.dns.port()
    );
    line(&dig, "the name");
    line("heddle get endpoints -n shop", "who serves, and who not");
    line(
        "heddle get workloads -n shop",
        "why, and why not the canary",
    );
    line("heddle describe service web -n shop", "all of it in words");
    line(
        &format!("heddle drain workload {workload}"),
        "no new work for it",
    );
    line(&format!("heddle undrain workload {workload}"), "and again");
    line("heddle explain web -n shop", "who gets the next request");
    line("heddle events -n shop", "what happened and why");
    line("heddle top", "what flows, live; q ends it");
    let metrics = format!(
        "curl -s http://{}/metrics | grep heddle_requests_total",
        node.admin
    );
    line(&metrics, "what Prometheus sees");
    text.push_str(&format!("\nIn a browser: http://{}/\n\n", node.admin));
    text
}
