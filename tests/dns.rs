//! DNS as a node serves it: what `heddle dig` says of it, over TLS, to secondaries, and in its log.

mod support;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use support::dns;
use support::netns::{self, Netns};
use support::node::{Node, NodeOptions, PATIENCE, heddle};
use support::wait::eventually;
use support::{missing_program, program, requirement};

const SERVICES: &str = "
apiVersion: heddle/v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{name: http, port: 80, protocol: http}], health: none}
---
apiVersion: heddle/v1
kind: Service
metadata: {name: db, namespace: data}
spec: {headless: true, ports: [{name: pg, port: 5432}], health: none}
---
apiVersion: heddle/v1
kind: Endpoint
metadata: {name: one, namespace: data}
spec: {service: db, address: 192.0.2.11, ports: {pg: 5432}, hostname: db-0}
---
apiVersion: heddle/v1
kind: Endpoint
metadata: {name: two, namespace: data}
spec: {service: db, address: 192.0.2.12, ports: {pg: 5432}, weight: 3}
---
apiVersion: heddle/v1
kind: Service
metadata: {name: mail, namespace: shop}
spec: {externalName: mail.example.com}
";

fn dig(node: &Node, words: &[&str]) -> Value {
    let text = node.ok(&[&["dig", "-o", "json"], words].concat());
    serde_json::from_str(&text).expect("heddle prints JSON")
}

#[test]
fn dig_says_what_is_answered_where_from_and_why() {
    let node = Node::start(&NodeOptions {
        dns_keys: "upstreams = []\nclients = [\"127.0.0.0/8\"]",
        ..NodeOptions::default()
    });
    node.apply(SERVICES);
    let vip = node.vip("shop/web").to_string();
    node.eligible("data/db", 2);
    let web = dig(&node, &["web.shop.svc.heddle.internal"]);
    assert_eq!(
        (&web["rcode"], &web["source"], &web["answers"][0]["data"]),
        (&"NOERROR".into(), &"zone".into(), &vip.as_str().into()),
        "{web}"
    );
    assert_eq!(web["services"][0]["service"], "shop/web");

    let text = node.ok(&["dig", "_pg._tcp.db.data.svc.heddle.internal", "SRV"]);
    for part in [
        "Comes from:   this node's own zone: service data/db",
        "5 SRV 0 1 5432 db-0.db.data.svc.heddle.internal.",
        "5 SRV 0 3 5432 192-0-2-12.db.data.svc.heddle.internal.",
        "headless: its names stand for them",
        "db/one:pg ready at 192.0.2.11:5432",
    ] {
        assert!(text.contains(part), "no `{part}` in {text}");
    }
    let reverse = dig(&node, &[&vip]);
    assert_eq!(
        reverse["answers"][0]["data"],
        "web.shop.svc.heddle.internal."
    );
    let gone = dig(&node, &["nobody.shop.svc.heddle.internal"]);
    assert_eq!(
        (&gone["rcode"], &gone["reason"]),
        (
            &"NXDOMAIN".into(),
            &"service shop/nobody does not exist".into()
        )
    );
    let short = dig(&node, &["web"]);
    assert_eq!(short["rcode"], "SERVFAIL");
    assert!(
        short["reason"].as_str().unwrap().contains("no upstream"),
        "{short}"
    );
    assert!(
        short["hints"][0]
            .as_str()
            .unwrap()
            .contains("search shop.svc.heddle.internal")
    );
    let far = dig(&node, &["example.com", "--from", "198.51.100.7"]);
    assert_eq!(
        (&far["rcode"], &far["source"]),
        (&"REFUSED".into(), &"none".into())
    );
    let why = far["reason"].as_str().unwrap();
    assert!(why.contains("127.0.0.0/8 (dns.clients)"), "{why}");
    for bad in [&["dig", "a..b"][..], &["dig", "a.example", "AXFR"]] {
        let output = node.heddle(bad);
        assert_eq!(output.status.code(), Some(2), "{bad:?}: {output:?}");
    }
    let output = heddle(&["dig", "--help"], "");
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        help.contains("heddle dig web.shop.svc.heddle.internal"),
        "{help}"
    );
}

#[test]
fn queries_are_logged_where_that_is_asked_for() {
    let quiet = Node::start(&NodeOptions::default());
    let told = Node::start(&NodeOptions {
        dns_keys: "query_log = 1",
        ..NodeOptions::default()
    });
    for node in [&quiet, &told] {
        node.apply(SERVICES);
        node.vip("shop/web");
        let server = node.logged_address("dns listens");
        for name in [
            "web.shop.svc.heddle.internal",
            "no.shop.svc.heddle.internal",
        ] {
            eventually(PATIENCE, "dns answers", || dns::ask(server, name));
        }
    }
    let line = |part: &str| {
        eventually(PATIENCE, part, || {
            let log = told.log();
            let line = log
                .lines()
                .find(|l| l.contains("dns query") && l.contains(part))?;
            Some(line.to_owned())
        })
    };
    let web = line("name=\"web.shop.svc.heddle.internal.\"");
    for part in [
        "client=127.0.0.1",
        "transport=udp",
        "type=\"A\"",
        "rcode=\"NOERROR\"",
        "source=\"zone\"",
        "micros=",
    ] {
        assert!(web.contains(part), "no {part} in {web}");
    }
    assert!(line("name=\"no.shop").contains("rcode=\"NXDOMAIN\""));
    assert!(!quiet.log().contains("dns query "), "{}", quiet.log());
}

struct Issued {
    cert: String,
    key: String,
}

fn issue() -> Issued {
    let made = rcgen::generate_simple_self_signed(vec!["dns.example".to_owned()]).unwrap();
    Issued {
        cert: made.cert.pem(),
        key: made.signing_key.serialize_pem(),
    }
}

#[test]
fn a_certificate_of_dns_over_tls_is_read_again_when_it_changes() {
    if !requirement("DNS over TLS", missing_program(&["kdig"])) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (cert, key) = (path("cert.pem"), path("key.pem"));
    let write = |issued: &Issued| {
        fs::write(&key, &issued.key).unwrap();
        fs::write(&cert, &issued.cert).unwrap();
    };
    let keys =
        format!("tls_listen = [\"127.0.0.1:0\"]\ncert_file = \"{cert}\"\nkey_file = \"{key}\"");
    let options = NodeOptions {
        dns_keys: &keys,
        ..NodeOptions::default()
    };
    let node = Node::prepare(&options);
    let config = node.path("heddle.toml").display().to_string();
    let output = heddle(&["up", "--config", &config], "");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.contains("dns.tls_listen") && error.contains("cert.pem can't be read"),
        "{error}"
    );

    let (first, second) = (issue(), issue());
    write(&first);
    let node = Node::start(&options);
    node.apply(SERVICES);
    let vip = node.vip("shop/web").to_string();
    let server = node.logged_address("dns over tls listens");
    let kdig = |issued: &Issued| -> Option<()> {
        let authority = folder.path().join("authority.pem");
        fs::write(&authority, &issued.cert).unwrap();
        let output = Command::new("kdig")
            .args([
                &format!("@{}", server.ip()),
                "-p",
                &server.port().to_string(),
            ])
            .arg(format!("+tls-ca={}", authority.display()))
            .args(["+tls-hostname=dns.example", "+retry=0", "+timeout=10"])
            .arg("web.shop.svc.heddle.internal")
            .output()
            .expect("kdig runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.contains(&vip).then_some(())
    };
    eventually(PATIENCE, "it is answered over TLS", || kdig(&first));
    assert!(
        kdig(&second).is_none(),
        "another certificate is not believed"
    );
    write(&second);
    eventually(PATIENCE, "the new certificate is shown", || kdig(&second));
    fs::write(&cert, "nothing").unwrap();
    eventually(PATIENCE, "/readyz tells of the file", || {
        let (_, body) = node.readyz()?;
        let text = body["reasons"].to_string();
        (text.contains("dns.cert_file") && text.contains("cert.pem")).then_some(())
    });
    kdig(&second).expect("what was good before is shown on");
    write(&second);
    eventually(PATIENCE, "/readyz tells of nothing any more", || {
        let (_, body) = node.readyz()?;
        (!body["reasons"].to_string().contains("dns.cert_file")).then_some(())
    });
    assert!(node.metric("heddle_dns_tls_handshakes_total", &["result=\"full\""]) >= 2.0);
    let expiry = node.metric("heddle_dns_certificate_expiry_timestamp_seconds", &[]);
    assert!(expiry > 1.7e9, "{expiry}");
}

/// Another program's name server, which ends with this.
struct Secondary(Child);

impl Drop for Secondary {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const PRIMARY: &str = "127.0.0.1:5300";

impl Secondary {
    fn start(netns: &Netns, words: &[&str], log: &Path) -> Secondary {
        let log = File::create(log).unwrap();
        let program = program(words[0]).expect("it is installed");
        let mut command = netns.command(&program.display().to_string());
        command.args(&words[1..]).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        Secondary(command.spawn().expect("it starts"))
    }

    fn knot(netns: &Netns, folder: &Path) -> Secondary {
        let at = folder.display();
        let text = format!(
            "server:\n  rundir: \"{at}\"\n  listen: 127.0.0.1@5301\nlog:\n  - target: stderr\n    any: debug\n\
             database:\n  storage: \"{at}\"\nremote:\n  - id: node\n    address: 127.0.0.1@5300\n\
             template:\n  - id: default\n    storage: \"{at}\"\n    master: node\n\
             zone:\n  - domain: heddle.internal\n  - domain: 96.10.in-addr.arpa\n"
        );
        let config = folder.join("knot.conf");
        fs::write(&config, text).unwrap();
        let config = config.display().to_string();
        Secondary::start(netns, &["knotd", "-c", &config], &folder.join("log"))
    }

    fn nsd(netns: &Netns, folder: &Path) -> Secondary {
        let at = folder.display();
        let zone = |name: &str| {
            format!(
                "zone:\n  name: {name}\n  zonefile: \"{name}\"\n  request-xfr: 127.0.0.1@5300 NOKEY\n"
            )
        };
        let text = format!(
            "server:\n  ip-address: 127.0.0.1@5302\n  do-ip6: no\n  username: \"\"\n  chroot: \"\"\n  zonesdir: \"{at}\"\n  \
             database: \"\"\n  pidfile: \"{at}/pid\"\n  xfrdfile: \"{at}/xfrd\"\n  xfrdir: \"{at}\"\n  zonelistfile: \"{at}/zones\"\n  \
             verbosity: 2\nremote-control:\n  control-enable: no\n{}{}",
            zone("heddle.internal"),
            zone("96.10.in-addr.arpa")
        );
        let config = folder.join("nsd.conf");
        fs::write(&config, text).unwrap();
        let config = config.display().to_string();
        Secondary::start(netns, &["nsd", "-d", "-c", &config], &folder.join("log"))
    }
}

/// What a server says to a question, sorted.
fn short(netns: &Netns, port: &str, question: &str) -> Vec<String> {
    let words = [
        "dig",
        "@127.0.0.1",
        "-p",
        port,
        "+short",
        "+time=2",
        "+tries=1",
    ];
    let all: Vec<&str> = words.into_iter().chain(question.split(' ')).collect();
    let output = netns.try_run(&all);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn a_secondary_follows(name: &str, port: &str, start: fn(&Netns, &Path) -> Secondary) {
    let needs = [name, "dig", "kdig", "nft"];
    if !netns::ready() || !requirement("a secondary", missing_program(&needs)) {
        return;
    }
    let netns = Netns::new();
    let folder = tempfile::tempdir().unwrap();
    let issued = issue();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("cert.pem"), &issued.cert).unwrap();
    fs::write(path("key.pem"), &issued.key).unwrap();
    // By TLS within the VIP range, which is the proxy's but for this.
    let keys = format!(
        "transfer_to = [\"127.0.0.1\"]\nupstreams = []\ntls_listen = [\"10.96.0.10:853\"]\n\
         cert_file = \"{}\"\nkey_file = \"{}\"",
        path("cert.pem"),
        path("key.pem")
    );
    let node = Node::start(&NodeOptions {
        netns: Some(&netns),
        vip_range: "10.96.0.0/16",
        dns: PRIMARY,
        dns_keys: &keys,
        ..NodeOptions::default()
    });
    node.apply(SERVICES);
    let vip = node.vip("shop/web").to_string();
    node.eligible("data/db", 2);
    let _secondary = start(&netns, folder.path());
    let log = || fs::read_to_string(folder.path().join("log")).unwrap_or_default();
    let same = |question: &str| {
        eventually(PATIENCE, &format!("{name} answers {question}"), || {
            let (ours, theirs) = (
                short(&netns, "5300", question),
                short(&netns, port, question),
            );
            let same = ours == theirs && !ours.is_empty();
            same.then_some(ours)
                .ok_or_else(|| format!("{theirs:?}\n{}", log()))
        })
    };
    let pointer = format!("-x {vip}");
    for question in [
        "web.shop.svc.heddle.internal A",
        "_http._tcp.web.shop.svc.heddle.internal SRV",
        "db.data.svc.heddle.internal A",
        "_pg._tcp.db.data.svc.heddle.internal SRV",
        "db-0.db.data.svc.heddle.internal A",
        "192-0-2-12.db.data.svc.heddle.internal A",
        "mail.shop.svc.heddle.internal CNAME",
        "n1.node.heddle.internal A",
        "dns-version.heddle.internal TXT",
        "heddle.internal NS",
        "ns.dns.heddle.internal A",
        &pointer,
    ] {
        same(question);
    }
    // What changes is followed within the refresh time, which is that of our answers.
    node.apply(&SERVICES.replace("name: web", "name: later"));
    let later = node.vip("shop/later").to_string();
    assert_eq!(same("later.shop.svc.heddle.internal A"), [later.as_str()]);
    node.ok(&["delete", "service", "web", "-n", "shop"]);
    eventually(PATIENCE, "what is gone is gone there too", || {
        let left = short(&netns, port, "web.shop.svc.heddle.internal A");
        left.is_empty().then_some(()).ok_or(left)
    });
    let secure = [
        "kdig",
        "@10.96.0.10",
        "+tls",
        "+short",
        "later.shop.svc.heddle.internal",
    ];
    assert_eq!(netns.run(&secure).trim(), later);
    let said = |words: &[&str]| {
        let output = netns.try_run(words);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let whole = ["dig", "@127.0.0.1", "-p", "5300", "heddle.internal", "AXFR"];
    let text = said(&whole);
    assert!(text.contains("XFR size") && text.contains("SRV"), "{text}");
    let text = said(&[&whole[..], &["-b", "127.0.0.9"]].concat());
    assert!(text.contains("Transfer failed"), "{text}");
}

#[test]
fn knot_is_a_secondary() {
    a_secondary_follows("knotd", "5301", Secondary::knot);
}

#[test]
fn nsd_is_a_secondary() {
    a_secondary_follows("nsd", "5302", Secondary::nsd);
}
