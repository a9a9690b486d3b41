//! `heddle demo`: a self-contained tour, which leaves nothing behind.
//!
//! A node on loopback, as `heddle up` runs it, with a registry in a folder of its own; backends in two services, each a
//! process or, with `--docker`, a container. It needs no root: virtual IPs come out of 127.96.0.0/16, and all ports are
//! ones that nobody has.
//!
//! # Layout
//! - this file: the order of things, and their end
//! - `folder`: the folder that goes with the demo
//! - `process`: processes that end with the demo, even where it is killed
//! - `node`: the node
//! - `processes`, `containers`, `image`: backends of either kind
//! - `services`: what is applied, and where it is reached
//! - `load`: requests, and who answered them
//! - `tour`: what is shown

mod containers;
mod folder;
mod image;
mod load;
mod node;
mod process;
mod processes;
mod services;
mod tour;

use std::future::Future;
use std::io::Write as _;

use tokio_util::sync::CancellationToken;

use crate::cli::Failure;
use containers::Containers;
use folder::Folder;
use node::Node;
use processes::Processes;

/// What `heddle demo` takes on its command line.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Real containers instead of processes, of an image made from this very binary; of the Docker
    /// that DOCKER_HOST names, else of this host's
    #[arg(long)]
    docker: bool,
}

/// What serves: the same tour for either kind.
enum Backends {
    Processes(Processes),
    Containers(Containers),
}

/// Why the demo goes no further.
enum End {
    /// It was told to end.
    Told,
    /// Something did not work.
    Failed(Failure),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        End::Failed(failure)
    }
}

impl Backends {
    /// Starts one; it is ready when its first check has passed.
    async fn start(&mut self, node: &Node, service: &str, name: &str) -> Result<(), Failure> {
        match self {
            Backends::Processes(all) => all.start(node, service, name).await,
            Backends::Containers(all) => all.start(service, name).await,
        }
    }

    /// Takes one out as its kind is taken out: no request may fail by it.
    async fn stop(&mut self, node: &Node, name: &str) -> Result<(), Failure> {
        match self {
            Backends::Processes(all) => all.stop(node, name).await,
            Backends::Containers(all) => all.stop(name).await,
        }
    }

    /// Kills one without a word to anybody.
    async fn kill(&mut self, name: &str) -> Result<(), Failure> {
        match self {
            Backends::Processes(all) => all.kill(name),
            Backends::Containers(all) => all.kill(name).await,
        }
    }

    async fn end(&mut self) -> Result<(), Failure> {
        match self {
            Backends::Processes(all) => {
                all.end().await;
                Ok(())
            }
            Backends::Containers(all) => all.end().await,
        }
    }
}

/// Runs the tour until it is told to end.
pub async fn run(options: Options) -> Result<(), Failure> {
    let told = told_to_end()?;
    let mut backends = if options.docker {
        Backends::Containers(Containers::connect().await?)
    } else {
        Backends::Processes(Processes::default())
    };
    let folder = Folder::make()?;
    let mut node = None;
    let result = tour::run(&folder, &mut node, &mut backends, &told).await;
    say("\ncleaning up\n").ok();
    let left = backends.end().await;
    if let Some(node) = &mut node {
        node.end().await;
    }
    folder.remove()?;
    match result {
        Err(End::Failed(failure)) => Err(failure),
        Ok(()) | Err(End::Told) => {
            left?;
            say("nothing is left of the demo\n").or(Ok(()))
        }
    }
}

/// Fires at SIGINT, SIGTERM and SIGHUP.
fn told_to_end() -> Result<CancellationToken, Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let told = CancellationToken::new();
    for kind in [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ] {
        let mut signal = signal(kind)
            .map_err(|e| Failure::Failed(format!("demo: signals can't be listened for: {e}")))?;
        let told = told.clone();
        tokio::spawn(async move {
            signal.recv().await;
            told.cancel();
        });
    }
    Ok(told)
}

/// What comes of waiting, unless the demo is told to end meanwhile.
async fn unless_told<T>(
    told: &CancellationToken,
    waiting: impl Future<Output = T>,
) -> Result<T, End> {
    tokio::select! {
        () = told.cancelled() => Err(End::Told),
        done = waiting => Ok(done),
    }
}

/// Prints. Whoever reads may be gone (`| head`): then the demo ends too, in order.
fn say(text: &str) -> Result<(), End> {
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|_| End::Told)
}
