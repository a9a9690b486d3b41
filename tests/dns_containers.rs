//! Containers that use the node's DNS: with glibc's resolver and with musl's, whose rules about search lists differ.

mod support;

use std::net::UdpSocket;

use support::docker::resolvers::{self, GLIBC, MUSL};
use support::docker::{self, Dockerd, RunOptions, Setup};
use support::netns::Netns;
use support::node::{Node, NodeOptions, PATIENCE};
use support::requirement;
use support::wait::eventually;

const SERVICES: &str = "
apiVersion: heddle/v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: app=web
  ports: [{name: http, port: 80, targetPort: 8080, protocol: http}]
---
apiVersion: heddle/v1
kind: Service
metadata: {name: each, namespace: shop}
spec:
  selector: app=web
  headless: true
  ports: [{name: http, port: 8080, targetPort: 8080, protocol: http}]
";

const DNS: &str = "10.96.0.10";

/// A host with Docker, a node whose DNS it uses, and two containers of `shop/web`.
struct Host {
    node: Node,
    docker: Dockerd,
}

impl Host {
    fn start(options: &[&str]) -> Option<Host> {
        let ready = docker::ready() && requirement("resolvers in containers", resolvers::missing());
        if !ready {
            return None;
        }
        let netns = Netns::new();
        upstream(&netns);
        let docker = Dockerd::start_with(
            "dns",
            Setup {
                netns: Some(netns.clone()),
                options: options.iter().map(|o| (*o).to_owned()).collect(),
                ..Setup::default()
            },
        );
        docker.import_resolvers();
        let node = Node::start(&NodeOptions {
            netns: Some(&netns),
            docker: Some(&docker),
            vip_range: "10.96.0.0/16",
            dns: "10.96.0.10:53",
            dns_keys: "upstreams = [\"127.0.0.53\"]",
            ..NodeOptions::default()
        });
        node.apply(SERVICES);
        for name in ["aa", "bb"] {
            docker.run(RunOptions {
                name,
                labels: &[("heddle.namespace", "shop"), ("app", "web")],
                ..RunOptions::default()
            });
        }
        node.eligible("shop/web", 2);
        node.eligible("shop/each", 2);
        Some(Host { node, docker })
    }

    fn web(&self) -> Vec<String> {
        vec![self.node.vip("shop/web").to_string()]
    }

    /// Asked until it is so: containers start slowly on a busy machine, and a resolver may give up before.
    #[track_caller]
    fn finds(&self, image: &str, options: &[&str], name: &str, expected: &[String]) {
        let what = format!("{image} {options:?} finds {expected:?} for {name}");
        eventually(PATIENCE, &what, || {
            let found = self.docker.look_up(image, options, name);
            (found == expected).then_some(()).ok_or(found)
        });
    }
}

/// The world outside, which has no name at all but `elsewhere.example`, at 203.0.113.7.
fn upstream(netns: &Netns) {
    let socket = netns.enter(|| UdpSocket::bind("127.0.0.53:53").expect("the port is free"));
    std::thread::spawn(move || {
        let mut packet = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut packet) {
            let mut answer = packet[..length].to_vec();
            // Without the OPT record of the query, which stands behind the question.
            let end = 12 + answer[12..].iter().position(|b| *b == 0).expect("a name") + 5;
            answer.truncate(end);
            answer[2] |= 0x80;
            answer[3] = 0x80;
            answer[4..12].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
            let name = answer[12..end - 4].to_ascii_lowercase();
            let kind = answer[end - 3];
            match name.as_slice() {
                b"\x09elsewhere\x07example\x00" if kind == 1 => {
                    answer[7] = 1;
                    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 203, 0, 113, 7]);
                }
                b"\x09elsewhere\x07example\x00" => {}
                _ => answer[3] |= 3,
            }
            if socket.send_to(&answer, from).is_err() {
                return;
            }
        }
    });
}

#[test]
fn both_resolvers_find_services_by_full_names_and_the_world_besides() {
    let Some(host) = Host::start(&[]) else { return };
    let (web, with) = (host.web(), ["--dns", DNS]);
    let mut each = vec![
        host.docker.address("aa", "bridge").to_string(),
        host.docker.address("bb", "bridge").to_string(),
    ];
    each.sort();
    for image in [GLIBC, MUSL] {
        // An AAAA question is asked too, and has no records: musl would find nothing were it NXDOMAIN.
        host.finds(image, &with, "web.shop.svc.heddle.internal", &web);
        host.finds(image, &with, "WEB.shop.svc.heddle.internal.", &web);
        host.finds(image, &with, "each.shop.svc.heddle.internal", &each);
        host.finds(image, &with, "no.shop.svc.heddle.internal", &[]);
        host.finds(
            image,
            &with,
            "elsewhere.example",
            &["203.0.113.7".to_owned()],
        );
        host.finds(image, &with, "nowhere.example", &[]);
    }
}

#[test]
fn search_lists_and_ndots_do_what_the_guide_says_of_each_resolver() {
    let Some(host) = Host::start(&[]) else { return };
    let web = host.web();
    let none: &[String] = &[];
    let namespace = ["--dns", DNS, "--dns-search", "shop.svc.heddle.internal"];
    let zone = ["--dns", DNS, "--dns-search", "svc.heddle.internal"];
    let two = [&zone[..], &["--dns-option", "ndots:2"]].concat();
    for (options, name, glibc, musl) in [
        (&namespace[..], "web", &web[..], &web[..]),
        // A dot is enough for a name to be asked for as it is; musl leaves it at that.
        (&zone, "web.shop", &web, none),
        (&two, "web.shop", &web, &web),
        (
            &two,
            "elsewhere.example",
            &["203.0.113.7".to_owned()],
            &["203.0.113.7".to_owned()],
        ),
        (&zone, "web", none, none),
    ] {
        host.finds(GLIBC, options, name, glibc);
        host.finds(MUSL, options, name, musl);
    }
}

#[test]
fn containers_of_networks_and_of_compose_ask_through_dockers_own_dns() {
    let Some(host) = Host::start(&[]) else { return };
    let web = host.web();
    host.docker.create_network("front");
    let options = [
        "--network",
        "front",
        "--dns",
        DNS,
        "--dns-search",
        "shop.svc.heddle.internal",
    ];
    for image in [GLIBC, MUSL] {
        host.finds(image, &options, "web.shop.svc.heddle.internal", &web);
    }
    // Docker writes `ndots:0` there where nothing is said: musl then looks for every name as it is, and nowhere else.
    host.finds(GLIBC, &options, "web", &web);
    host.finds(MUSL, &options, "web", &[]);
    let with_ndots = [&options[..], &["--dns-option", "ndots:1"]].concat();
    for image in [GLIBC, MUSL] {
        host.finds(image, &with_ndots, "web", &web);
    }
}

#[test]
fn the_daemons_own_setting_is_enough_for_all_containers() {
    let options = [
        "--dns=10.96.0.10",
        "--dns-search=shop.svc.heddle.internal",
        "--dns-opt=ndots:2",
    ];
    let Some(host) = Host::start(&options) else {
        return;
    };
    let web = host.web();
    for image in [GLIBC, MUSL] {
        host.finds(image, &[], "web", &web);
        host.finds(image, &[], "web.shop.svc.heddle.internal", &web);
    }
}
