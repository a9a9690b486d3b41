//! Three members, and what can happen to them.

use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

use super::relay::Relay;
use super::{Etcd, Options, PATIENCE, available_or_skipped};

/// How many members.
const SIZE: usize = 3;

/// An etcd cluster of three members, named by their index.
pub struct Cluster {
    members: Vec<Etcd>,
    /// In front of each member's peer port.
    peers: Vec<Relay>,
    /// In front of each member's client port, for those who ask there.
    clients: Vec<Relay>,
    ids: Vec<String>,
}

impl Cluster {
    /// Starts a cluster, or says loudly that the test is skipped where etcd is not installed. In CI
    /// that is a failure.
    pub fn start_or_skip(test: &str) -> Option<Cluster> {
        Cluster::start_or_skip_with(test, Options::default())
    }

    /// Like [`Cluster::start_or_skip`], in another way than usual.
    pub fn start_or_skip_with(test: &str, options: Options) -> Option<Cluster> {
        available_or_skipped(test).then(|| Cluster::start_with(options))
    }

    /// Starts a cluster and waits until it is healthy.
    pub fn start() -> Cluster {
        Cluster::start_with(Options::default())
    }

    /// Like [`Cluster::start`], in another way than usual.
    pub fn start_with(options: Options) -> Cluster {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut cluster = Cluster::new(&options);
            for member in &mut cluster.members {
                member.spawn();
            }
            match cluster.wait_until_healthy(deadline) {
                Ok(()) => {
                    cluster.learn_ids();
                    return cluster;
                }
                // Somebody else took one of the ports in the meantime.
                Err(log) if log.contains("address already in use") => {}
                Err(log) => panic!("etcd does not start:\n{log}"),
            }
        }
    }

    fn new(options: &Options) -> Cluster {
        let mut members: Vec<Etcd> = (0..SIZE)
            .map(|index| Etcd::new(&format!("m{index}"), options.clone()))
            .collect();
        let peers: Vec<Relay> = members
            .iter()
            .map(|member| Relay::start(member.peer_port))
            .collect();
        let clients = members
            .iter()
            .map(|member| Relay::start(member.client_port))
            .collect();
        for (member, relay) in members.iter_mut().zip(&peers) {
            member.peer_url = format!("http://127.0.0.1:{}", relay.port());
        }
        let all: Vec<String> = members
            .iter()
            .map(|member| format!("{}={}", member.name, member.peer_url))
            .collect();
        for member in &mut members {
            member.members = all.join(",");
        }
        Cluster {
            members,
            peers,
            clients,
            ids: Vec::new(),
        }
    }

    fn wait_until_healthy(&mut self, deadline: Instant) -> Result<(), String> {
        self.members
            .iter_mut()
            .try_for_each(|member| member.wait_until_healthy(deadline))
    }

    fn learn_ids(&mut self) {
        let list = self.members[0].ctl(&["member", "list"]);
        let id = |name: &str| {
            let of_name = |line: &&str| line.split(", ").nth(2) == Some(name);
            let line = list.lines().find(of_name);
            let id = line.and_then(|line| line.split(", ").next());
            id.expect("a member has an id").to_owned()
        };
        self.ids = self.members.iter().map(|member| id(&member.name)).collect();
    }

    /// One of the members.
    pub fn member(&self, index: usize) -> &Etcd {
        &self.members[index]
    }

    /// One of the members, to be killed or started again.
    pub fn member_mut(&mut self, index: usize) -> &mut Etcd {
        &mut self.members[index]
    }

    /// All client URLs.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(Etcd::endpoint).collect()
    }

    /// All client URLs for those who reach this machine at `address`.
    pub fn endpoints_at(&self, address: IpAddr) -> Vec<String> {
        self.members
            .iter()
            .map(|member| member.endpoint_at(address))
            .collect()
    }

    /// Client URLs that lead through relays, for [`Cluster::cut_clients_off`].
    pub fn endpoints_by_relay(&self) -> Vec<String> {
        let url = |(member, relay): (&Etcd, &Relay)| {
            format!("{}://127.0.0.1:{}", member.scheme(), relay.port())
        };
        self.members.iter().zip(&self.clients).map(url).collect()
    }

    /// The member that leads now, as a member that is up tells.
    pub fn leader(&self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let up = self.members.iter().find(|member| member.child.is_some());
            let status =
                up.expect("a member is up")
                    .ctl(&["endpoint", "status", "--write-out=fields"]);
            let leader = status
                .lines()
                .find_map(|line| line.strip_prefix("\"Leader\" : "))
                .and_then(|id| id.parse::<u64>().ok())
                .map(|id| format!("{id:x}"));
            if let Some(index) = self.ids.iter().position(|id| Some(id) == leader.as_ref()) {
                return index;
            }
            assert!(Instant::now() < deadline, "nobody leads: {status}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Cuts a member off from the others, in both directions: nothing is refused, nothing arrives. Clients reach it.
    pub fn cut_off(&self, index: usize) {
        self.peers[index].cut();
        for (other, relay) in self.peers.iter().enumerate() {
            if other != index {
                relay.cut_from(&self.ids[index]);
            }
        }
    }

    /// Cuts those who ask through relays off from a member.
    pub fn cut_clients_off(&self, index: usize) {
        self.clients[index].cut();
    }

    /// Ends all cuts.
    pub fn mend(&self) {
        self.peers.iter().chain(&self.clients).for_each(Relay::mend);
    }

    /// Ends all members by SIGKILL.
    pub fn kill_all(&mut self) {
        self.members.iter_mut().for_each(Etcd::kill);
    }

    /// Starts all members that are down.
    pub fn restart_all(&mut self) {
        for member in &mut self.members {
            if member.child.is_none() {
                member.spawn();
            }
        }
        let healthy = self.wait_until_healthy(Instant::now() + PATIENCE);
        if let Err(log) = healthy {
            panic!("etcd does not start again:\n{log}");
        }
    }

    /// Forgets the history before `revision`.
    pub fn compact(&self, revision: i64) {
        self.members[0].compact(revision);
    }

    /// Ends all members, and starts them again from a state saved with [`Etcd::save`].
    pub fn restore(&mut self, file: &Path) {
        self.kill_all();
        for member in &mut self.members {
            member.restore_data(file);
        }
        self.restart_all();
    }
}
