//! The binary `heddle`: one process per host that selects containers into services and routes to them.
//!
//! # Layout
//! - `app`: `heddle up`, wired from top to bottom
//! - `config`: the node's configuration
//! - `writer`: the one task that publishes snapshots
//! - `events`: what changed and why, kept for people
//! - `resources_folder`: manifests in files
//! - `traffic`: what flows through this node, in figures
//! - `admin`: health, metrics and the API
//! - `dashboard`: the page at the admin address
//! - `cli`: the commands
//! - `demo`: a tour that needs nothing and leaves nothing
//! - `doctor`: what this machine has and lacks for a node
//! - `top`: what flows through a node, live
//! - `whoami`: a small test backend
//! - `sd_notify`: telling systemd how the node fares
//! - `telemetry`: logging

mod admin;
mod app;
mod cli;
mod config;
mod dashboard;
mod demo;
mod doctor;
mod events;
mod resources_folder;
mod sd_notify;
mod telemetry;
mod top;
mod traffic;
mod whoami;
mod writer;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let cli = cli::Cli::typed();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => fail(&cli::Failure::Failed(format!(
            "control runtime: can't start: {error}"
        ))),
    };
    let result = runtime.block_on(cli::run(cli));
    // What still blocks (a read of standard input, a file) must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    if let Err(failure) = result {
        fail(&failure);
    }
}

fn fail(failure: &cli::Failure) -> ! {
    let text = failure.to_string();
    if !text.is_empty() {
        let text = format!("error: {text}");
        eprintln!("{}", cli::table::fitted(&text, &std::io::stderr()));
    }
    std::process::exit(failure.code());
}
