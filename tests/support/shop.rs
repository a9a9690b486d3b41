//! One host with containers, a node on it, and the service `shop/web`: what most tests of containers begin with.

use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

use super::docker::{self, Dockerd, RunOptions, Setup};
use super::etcd::Etcd;
use super::http;
use super::netns::{Lan, Netns};
use super::node::{Node, NodeOptions, PATIENCE};
use super::wait::eventually;

pub const WEB: &str = "
apiVersion: heddle/v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: app=web
  ports: [{name: http, port: 80, targetPort: 8080, protocol: http}]
";

/// [`WEB`] with this policy of health checks.
pub fn web_checked(health: &str) -> String {
    format!("{WEB}  health: {health}\n")
}

/// What puts a container into `shop/web`.
pub const LABELS: &[(&str, &str)] = &[("heddle.namespace", "shop"), ("app", "web")];

/// Dropped in this order: the node before the Docker that it watches.
pub struct Shop {
    pub node: Node,
    pub docker: Dockerd,
    pub netns: Netns,
    _etcd: Option<(Etcd, Lan)>,
}

impl Shop {
    /// A host whose node has the embedded registry; `None` where Docker can't be tested.
    pub fn start(setup: Setup) -> Option<Shop> {
        let ready = if setup.podman {
            docker::podman_ready()
        } else {
            docker::ready()
        };
        ready.then(|| Shop::start_in(setup, None))
    }

    /// A host whose node has an etcd, which is on the test's own host.
    pub fn start_with_etcd() -> Option<Shop> {
        if !docker::ready() {
            return None;
        }
        let etcd = Etcd::start_or_skip("the agent with etcd")?;
        let lan = Lan::new(1);
        let setup = Setup {
            netns: Some(lan.hosts[0].netns.clone()),
            ..Setup::default()
        };
        Some(Shop::start_in(setup, Some((etcd, lan))))
    }

    fn start_in(setup: Setup, etcd: Option<(Etcd, Lan)>) -> Shop {
        let docker = Dockerd::start_with("shop", setup);
        let netns = docker.netns.clone();
        let node = Node::start(&NodeOptions {
            netns: Some(&netns),
            etcd: etcd
                .as_ref()
                .map(|(etcd, lan)| etcd.endpoint_at(IpAddr::V4(lan.address))),
            docker: Some(&docker),
            vip_range: "10.96.0.0/16",
            ..NodeOptions::default()
        });
        node.apply(WEB);
        Shop {
            node,
            docker,
            netns,
            _etcd: etcd,
        }
    }

    /// A whoami of `shop/web` with further options of `docker run`.
    #[track_caller]
    pub fn run(&self, name: &str, extra: &[&str]) {
        self.run_with(name, extra, &["whoami", "--name", name]);
    }

    /// A container of `shop/web` with these arguments of `heddle`.
    #[track_caller]
    pub fn run_with(&self, name: &str, extra: &[&str], args: &[&str]) {
        self.docker.run(RunOptions {
            name,
            labels: LABELS,
            extra,
            args,
            ..RunOptions::default()
        });
    }

    pub fn web(&self) -> SocketAddr {
        SocketAddr::new(self.node.vip("shop/web"), 80)
    }

    /// Who answers at the virtual IP.
    pub fn ask(&self) -> Result<String, String> {
        self.ask_at(self.web())
    }

    /// Who answers at an address, asked from the host.
    pub fn ask_at(&self, address: SocketAddr) -> Result<String, String> {
        self.netns.enter(|| http::id(address))
    }

    /// The endpoint of a container, by the container's name.
    pub fn endpoint(&self, name: &str) -> Option<Value> {
        let all = self.node.endpoints("shop/web");
        all.into_iter().find(|e| e["workloadName"] == name)
    }

    /// Waits until a container's endpoint is in this state.
    #[track_caller]
    pub fn until_state(&self, name: &str, state: &str) -> Value {
        eventually(PATIENCE, &format!("{name} is {state}"), || {
            let endpoint = self.endpoint(name).ok_or("no endpoint".to_owned())?;
            if endpoint["state"] == state {
                Ok(endpoint)
            } else {
                Err(endpoint.to_string())
            }
        })
    }

    /// Waits until a container has no endpoint.
    #[track_caller]
    pub fn until_gone(&self, name: &str) {
        eventually(PATIENCE, &format!("{name} is gone"), || {
            self.endpoint(name).is_none()
        });
    }

    /// Waits until `get workloads` says this of a container.
    #[track_caller]
    pub fn until_told(&self, name: &str, text: &str) -> Value {
        eventually(PATIENCE, &format!("{name} is told {text:?}"), || {
            let workload = self.node.workload(name).ok_or("no workload".to_owned())?;
            if workload.to_string().contains(text) {
                Ok(workload)
            } else {
                Err(workload.to_string())
            }
        })
    }
}
