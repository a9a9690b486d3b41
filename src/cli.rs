//! The command line: what can be typed, and where each command is carried out.
//!
//! # Layout
//! - this file: the commands and their options
//! - `client`: talking to a node
//! - `table`: tables for people
//! - `manual`: completions and manual pages
//! - `get`, `apply`, `env`, `check`, `events`, `describe`, `explain`, `dig`, `export`: the commands that do more than one call

pub mod apply;
pub mod check;
pub mod client;
pub mod describe;
pub mod dig;
pub mod env;
pub mod events;
pub mod explain;
pub mod export;
pub mod get;
pub mod manual;
pub mod table;

use std::path::PathBuf;

use clap::{Arg, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};

use crate::admin::write::{Done, DrainRequest};
use crate::whoami;
use client::Client;

/// Why a command failed, and with which status it ends.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Bad usage or bad input; nothing was changed: exit status 2.
    #[error("{0}")]
    Input(String),
    /// It was tried and failed: exit status 1.
    #[error("{0}")]
    Failed(String),
    /// The command that `heddle env --` ran ended with this status.
    #[error("")]
    Status(i32),
}

impl Failure {
    /// The process's exit status.
    pub fn code(&self) -> i32 {
        match self {
            Failure::Input(_) => 2,
            Failure::Failed(_) => 1,
            Failure::Status(code) => *code,
        }
    }
}

/// Select containers by label, and route to them: proxy, DNS and registry in one process per host.
#[derive(Debug, Parser)]
#[command(
    name = "heddle",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = "Example: heddle demo\nHow to begin, step by step: docs/getting-started.md"
)]
pub struct Cli {
    /// The node to talk to: unix:///run/heddle/heddle.sock or http://host:port
    #[arg(long, global = true, env = "HEDDLE_SERVER", value_name = "ADDR")]
    server: Option<String>,
    #[command(subcommand)]
    command: Command,
}

/// Which resources.
#[derive(Debug, Args)]
pub struct Scope {
    /// Of this namespace; without it of `default`
    #[arg(short, long, value_name = "NS")]
    pub namespace: Option<String>,
    /// Of all namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Columns
    Table,
    /// More columns
    Wide,
    /// As the API has it
    Json,
    /// The same as YAML
    Yaml,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run this node: agent, proxy, dns and admin in one process
    #[command(after_help = "Example: heddle up --config /etc/heddle/heddle.toml")]
    Up {
        /// The configuration; without it /etc/heddle/heddle.toml, where it exists
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Show all of it on this machine: no root, no Docker, no configuration; leaves nothing behind
    #[command(after_help = "Example: heddle demo")]
    Demo(crate::demo::Options),
    /// Create or replace resources from YAML or JSON, all or nothing
    #[command(after_help = "Example: heddle apply -f web.yaml")]
    Apply {
        /// A file, a folder, or - for standard input
        #[arg(short, long, value_name = "FILE|DIR|-")]
        filename: PathBuf,
        /// Say what would be done, and change nothing
        #[arg(long)]
        dry_run: bool,
        /// Show what differs from what is there
        #[arg(long)]
        diff: bool,
    },
    /// Delete a resource, or those that a file defines
    #[command(after_help = "Example: heddle delete service web -n shop")]
    Delete {
        /// service or endpoint; or node, for one that is gone for good, with all that it left
        #[arg(required_unless_present = "filename")]
        kind: Option<String>,
        /// Its name
        #[arg(required_unless_present = "filename")]
        name: Option<String>,
        /// Its namespace
        #[arg(short, long, value_name = "NS", default_value = "default")]
        namespace: String,
        /// Delete what this file, folder or - (standard input) defines
        #[arg(short, long, value_name = "FILE|DIR|-", conflicts_with_all = ["kind", "name"])]
        filename: Option<PathBuf>,
    },
    /// List services, endpoints, workloads or nodes
    #[command(after_help = "Example: heddle get endpoints -n shop -w")]
    Get {
        /// services, endpoints, workloads or nodes
        kind: String,
        /// Only this one
        name: Option<String>,
        #[command(flatten)]
        scope: Scope,
        /// How to print
        #[arg(short, long, value_enum, default_value = "table")]
        output: Output,
        /// Go on with what changes
        #[arg(short, long)]
        watch: bool,
    },
    /// Say in words what a service, endpoint, workload or node is, and why it takes traffic or not
    #[command(after_help = "Example: heddle describe service web -n shop")]
    Describe {
        /// service, endpoint, workload or node
        kind: String,
        /// Its name; of an endpoint or workload a unique prefix is enough
        name: String,
        /// Look in this namespace; without it services in `default`, endpoints and workloads everywhere
        #[arg(short, long, value_name = "NS")]
        namespace: Option<String>,
    },
    /// Say which endpoints would be given the next request, and which filter removed each other one
    #[command(
        after_help = "Examples:\n  heddle explain web -n shop\n  heddle explain http://web.shop.svc.heddle.internal/"
    )]
    Explain {
        /// A service, or a URL: by virtual IP, by name in DNS, or by an address and a node port
        #[arg(value_name = "SERVICE|URL")]
        what: String,
        /// The service's namespace; without it `default`, where NAME is not NAMESPACE/NAME
        #[arg(short, long, value_name = "NS")]
        namespace: Option<String>,
        /// As the API has it
        #[arg(long)]
        json: bool,
    },
    /// Say what a node's DNS would answer, where that comes from, and why
    #[command(
        after_help = "Examples:\n  heddle dig web.shop.svc.heddle.internal\n  heddle dig _http._tcp.web.shop.svc.heddle.internal SRV\n  heddle dig example.com --from 192.0.2.7"
    )]
    Dig(#[command(flatten)] dig::Options),
    /// Show what changed and why, newest last
    #[command(after_help = "Example: heddle events -n shop --since 10m --for service/web")]
    Events(#[command(flatten)] events::Options),
    /// Print all resources, for a backup or to move them to another registry
    #[command(
        after_help = "Left out is what nodes derive: endpoints of containers, liveness, nodes.\n\nExample: heddle export > backup.yaml"
    )]
    Export {
        /// Only of this namespace; without it everything
        #[arg(short, long, value_name = "NS")]
        namespace: Option<String>,
        /// Everything, as without -n
        #[arg(short = 'A', long, conflicts_with = "namespace")]
        all_namespaces: bool,
        /// How to print
        #[arg(short, long, value_enum, default_value = "yaml")]
        output: export::Format,
    },
    /// Write what heddle export printed
    #[command(
        after_help = "What is there already is left as it is; import again to finish an import that was interrupted.\n\nExample: heddle import -f backup.yaml --dry-run"
    )]
    Import {
        /// The file; - for standard input
        #[arg(short, long, value_name = "FILE|-")]
        filename: PathBuf,
        /// Say what would be done, and change nothing
        #[arg(long)]
        dry_run: bool,
        /// Write over resources that are there and differ
        #[arg(long)]
        replace: bool,
    },
    /// Put a process or a VM beside the containers of this node
    #[command(after_help = "Example: heddle register postgres.yaml")]
    Register {
        /// Its id, labels, ports and check; - for standard input
        file: PathBuf,
    },
    /// Take a registration away
    #[command(after_help = "Example: heddle deregister postgres")]
    Deregister {
        /// Its id
        id: String,
    },
    /// Give no new work to a node, an endpoint or a workload
    #[command(after_help = "Example: heddle drain workload shop_web_1")]
    Drain {
        #[command(flatten)]
        target: Target,
        /// Shown beside the mark
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// Give it work again
    #[command(after_help = "Example: heddle undrain workload shop_web_1")]
    Undrain {
        #[command(flatten)]
        target: Target,
    },
    /// Print the service variables (WEB_SERVICE_HOST …), or run a command with them
    #[command(after_help = "Example: heddle env -n shop -- ./worker")]
    Env {
        /// Only of these services
        services: Vec<String>,
        /// Of this namespace
        #[arg(short, long, value_name = "NS", default_value = "default")]
        namespace: String,
        /// How to print
        #[arg(short, long, value_enum, default_value = "shell")]
        output: env::Format,
        /// Run this command with them
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Show what flows through a node, live: rate, errors, latency, connections
    #[command(
        after_help = "Keys: q quit, arrows or j/k move, enter shows a service's endpoints, e all, s sorts, p pauses.\nWhere standard output is no terminal: one table, and the end.\n\nExample: heddle top -n shop"
    )]
    Top(crate::top::Options),
    /// Look whether this machine has what a node needs, and say how to mend what it lacks
    #[command(
        after_help = "Looks at Docker, etcd and its clock, ports, virtual IPs, DNS from a container, limits; changes nothing.\nStatus 1: something must be mended.\n\nExample: heddle doctor --config /etc/heddle/heddle.toml"
    )]
    Doctor(crate::doctor::Options),
    /// Validate a configuration (.toml) or manifests (.yaml, .json) without a running node
    #[command(after_help = "Example: heddle check /etc/heddle/heddle.toml")]
    Check {
        /// The file or folder
        file: PathBuf,
    },
    /// Print a shell's completions
    #[command(
        after_help = "Example: heddle completions bash > /usr/share/bash-completion/completions/heddle"
    )]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages of heddle and of each command into a folder
    #[command(hide = true, after_help = "Example: heddle man /usr/share/man/man1")]
    Man {
        /// The folder
        folder: PathBuf,
    },
    /// Run a small test backend
    #[command(after_help = "Example: heddle whoami --listen 127.0.0.1:8080")]
    Whoami(whoami::Options),
}

/// What to drain.
#[derive(Debug, Args)]
pub struct Target {
    /// node, endpoint or workload
    kind: String,
    /// Its name; of an endpoint a unique prefix, or its container's name
    name: String,
    /// Look only in this namespace
    #[arg(short, long, value_name = "NS")]
    namespace: Option<String>,
}

/// Commands that talk to no running node, or that find theirs by its configuration.
const ALONE: [&str; 7] = [
    "up",
    "demo",
    "doctor",
    "check",
    "whoami",
    "completions",
    "man",
];

impl Cli {
    /// All that can be typed, as help, completions and manual pages show it: `--server` only where it says something.
    pub fn shown() -> clap::Command {
        let hide = |command: clap::Command, name: &&str| {
            let hidden = Arg::new("server").long("server").hide(true);
            let hidden = hidden.help("Of no meaning here");
            command.mut_subcommand(name, |sub| sub.arg(hidden))
        };
        ALONE.iter().fold(Cli::command(), hide)
    }

    /// What was typed. Help and mistakes end the process.
    pub fn typed() -> Cli {
        let matches = Cli::shown().get_matches();
        Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }
}

/// Carries a command out.
pub async fn run(cli: Cli) -> Result<(), Failure> {
    let client = || Client::new(cli.server.as_deref());
    match cli.command {
        Command::Up { config } => crate::app::up(config).await,
        Command::Demo(options) => crate::demo::run(options).await,
        Command::Whoami(options) => whoami::run(options)
            .await
            .map_err(|e| Failure::Failed(format!("{e:#}"))),
        Command::Top(options) => crate::top::run(client()?, &options).await,
        Command::Completions { shell } => manual::completions(shell),
        Command::Man { folder } => manual::pages(&folder),
        Command::Doctor(options) => crate::doctor::run(options).await,
        Command::Check { file } => check::check(&file),
        Command::Apply {
            filename,
            dry_run,
            diff,
        } => apply::apply(&client()?, &filename, dry_run, diff).await,
        Command::Delete {
            kind,
            name,
            namespace,
            filename,
        } => match (filename, kind, name) {
            (Some(file), _, _) => apply::delete_file(&client()?, &file).await,
            (None, Some(kind), Some(name)) => {
                apply::delete(&client()?, &kind, &namespace, &name).await
            }
            _ => Err(Failure::Input(
                "delete: name KIND and NAME, or -f FILE".to_owned(),
            )),
        },
        Command::Get {
            kind,
            name,
            scope,
            output,
            watch,
        } => get::get(&client()?, &kind, name.as_deref(), &scope, output, watch).await,
        Command::Describe {
            kind,
            name,
            namespace,
        } => describe::describe(&client()?, &kind, &name, namespace.as_deref()).await,
        Command::Explain {
            what,
            namespace,
            json,
        } => explain::explain(&client()?, &what, namespace.as_deref(), json).await,
        Command::Dig(options) => dig::dig(&client()?, &options).await,
        Command::Events(options) => events::events(&client()?, &options).await,
        Command::Export {
            namespace, output, ..
        } => export::export(&client()?, namespace.as_deref(), output).await,
        Command::Import {
            filename,
            dry_run,
            replace,
        } => export::import(&client()?, &filename, dry_run, replace).await,
        Command::Register { file } => {
            let text = apply::read(&file)?;
            crate::admin::write::parse_registration(&text)
                .map_err(|why| Failure::Input(format!("{}: {why}", file.display())))?;
            let done: Done = client()?.post("/v1/registrations", text).await?;
            println!("{}", done.done);
            Ok(())
        }
        Command::Deregister { id } => {
            let path = format!("/v1/registrations/{}", client::escape(&id));
            let done: Done = client()?.delete(&path).await?;
            println!("{}", done.done);
            Ok(())
        }
        Command::Drain { target, reason } => drain(&client()?, "/v1/drain", target, reason).await,
        Command::Undrain { target } => {
            drain(&client()?, "/v1/undrain", target, String::new()).await
        }
        Command::Env {
            services,
            namespace,
            output,
            command,
        } => env::env(&client()?, &services, &namespace, output, &command).await,
    }
}

async fn drain(client: &Client, path: &str, target: Target, reason: String) -> Result<(), Failure> {
    let request = DrainRequest {
        kind: target.kind,
        name: target.name,
        namespace: target.namespace,
        reason,
    };
    let body = serde_json::to_string(&request).map_err(|e| Failure::Failed(e.to_string()))?;
    let done: Done = client.post(path, body).await?;
    println!("{}", done.done);
    Ok(())
}
