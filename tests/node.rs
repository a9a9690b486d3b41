//! A node without containers: manifests, the resources folder, registrations, the command line and its errors.

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};

use support::dns;
use support::http;
use support::node::{Node, NodeOptions, PATIENCE, Watching, heddle};
use support::wait::eventually;
use support::whoami::Whoami;

const BACKENDS: &str = "
apiVersion: heddle/v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  ports: [{name: http, port: 8080, protocol: http}]
  health: {http: {path: /healthz}, interval: 100ms, timeout: 10s, fall: 1, rise: 1}
";

fn endpoint(name: &str, address: SocketAddr) -> String {
    format!(
        "---\napiVersion: heddle/v1\nkind: Endpoint\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{service: web, address: \"{}\", ports: {{http: {}}}}}\n",
        address.ip(),
        address.port()
    )
}

/// Where `shop/web` is served; waits until somebody listens there.
#[track_caller]
fn door(node: &Node) -> SocketAddr {
    let door = SocketAddr::new(node.vip("shop/web"), 8080);
    eventually(PATIENCE, "its virtual IP is listened on", || {
        TcpStream::connect(door)
    });
    door
}

fn stderr(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_service_made_by_hand_is_balanced_and_checked() {
    let node = Node::start(&NodeOptions::default());
    let a = Whoami::start("a", &[]);
    let mut b = Whoami::start("b", &[]);
    let said = node.apply(&format!(
        "{BACKENDS}{}{}",
        endpoint("a", a.http),
        endpoint("b", b.http)
    ));
    assert!(
        said.contains("service shop/web created, virtual IP 127."),
        "{said}"
    );
    node.eligible("shop/web", 2);
    let vip = door(&node);
    let mut ids: Vec<String> = (0..4)
        .map(|_| http::get(vip, "/id").unwrap().body.trim().to_owned())
        .collect();
    ids.sort();
    assert_eq!(ids, ["a", "a", "b", "b"]);
    b.signal(libc::SIGKILL);
    b.ended_within(PATIENCE);
    for _ in 0..10 {
        assert_eq!(
            http::get(vip, "/id").unwrap().body.trim(),
            "a",
            "a refused connection goes to the next"
        );
    }
    node.eligible("shop/web", 1);
    let gone = node
        .endpoints("shop/web")
        .into_iter()
        .find(|e| e["name"] == "web/b:http")
        .unwrap();
    assert_eq!(gone["state"], "unhealthy");
    let reason = gone["reason"].as_str().unwrap().to_lowercase();
    // A check that was under way just then saw its connection end.
    let ends = ["refused", "reset", "closed"];
    assert!(ends.iter().any(|end| reason.contains(end)), "{gone}");
}

#[test]
fn nobody_home_is_a_503_with_a_reason() {
    let node = Node::start(&NodeOptions::default());
    node.apply(BACKENDS);
    let vip = door(&node);
    let answer = http::get(vip, "/").expect("an answer");
    assert_eq!(answer.status, 503);
    assert!(
        answer.body.contains("shop/web has no endpoints"),
        "{}",
        answer.body
    );
}

#[test]
fn only_what_passes_its_checks_gets_work_and_the_name_resolves_all_the_while() {
    let node = Node::start(&NodeOptions::default());
    let slow = Whoami::start("slow", &["--ready-after", "10m"]);
    node.apply(&format!("{BACKENDS}{}", endpoint("slow", slow.http)));
    let vip = door(&node);
    let IpAddr::V4(address) = vip.ip() else {
        panic!("the virtual IP is IPv4");
    };
    let server = node.logged_address("dns listens");
    let resolves = || {
        let answer = dns::ask(server, "web.shop.svc.heddle.internal").expect("DNS answers");
        assert_eq!(answer, dns::Answer::is(address));
    };
    let refused = |with: &str| {
        let what = format!("503 with {with}");
        eventually(PATIENCE, &what, || match http::get(vip, "/id") {
            Ok(answer) if answer.status == 503 && answer.body.contains(with) => Ok(()),
            Ok(answer) => Err(format!("{}: {}", answer.status, answer.body)),
            Err(error) => Err(error.to_string()),
        });
    };
    let none = "shop/web has no endpoint to take this: ";
    refused(&format!("{none}1 starting (GET /healthz: 503"));
    resolves();

    let (a, b) = (Whoami::start("a", &[]), Whoami::start("b", &[]));
    node.apply(&format!(
        "{}{}",
        endpoint("a", a.http),
        endpoint("b", b.http)
    ));
    node.eligible("shop/web", 2);
    for _ in 0..30 {
        let answer = http::get(vip, "/id").expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_ne!(answer.body.trim(), "slow", "it has not passed a check yet");
    }
    resolves();

    let tell = |status: &str| {
        for backend in [&a, &b] {
            let answer = http::post(backend.http, &format!("/health?status={status}"), "");
            assert_eq!(answer.expect("an answer").status, 200);
        }
    };
    tell("500");
    node.eligible("shop/web", 0);
    refused(&format!("{none}1 starting, 2 unhealthy (GET /healthz: 50"));
    resolves();
    tell("200");
    node.eligible("shop/web", 2);
    assert_eq!(http::get(vip, "/id").expect("an answer").status, 200);
    resolves();
}

#[test]
fn a_bad_manifest_changes_nothing_and_names_every_mistake() {
    let node = Node::start(&NodeOptions::default());
    let bad = format!(
        "{BACKENDS}---\n{}---\n{}",
        BACKENDS.replace("web", "x").replace("8080", "99999"),
        BACKENDS.replace("web", "y").replace("health", "helth")
    );
    let output = node.heddle_with(&["apply", "-f", "-"], &bad);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(text.starts_with("error: "), "{text}");
    assert!(
        text.contains("spec.ports[0].port") && text.contains("did you mean `health`?"),
        "{text}"
    );
    assert_eq!(node.get("services").len(), 0);
}

#[test]
fn an_address_that_another_service_has_is_refused_by_name() {
    let node = Node::start(&NodeOptions::default());
    node.apply(BACKENDS);
    let vip = node.vip("shop/web");
    let asking = |vip: &str| {
        let manifest = format!(
            "apiVersion: heddle/v1\nkind: Service\nmetadata: {{name: db}}\nspec: {{ports: [{{port: 5432}}], vips: ['{vip}']}}\n"
        );
        let output = node.heddle_with(&["apply", "-f", "-"], &manifest);
        assert!(!output.status.success());
        stderr(&output)
    };
    for (vip, reason) in [
        (
            vip.to_string(),
            "which service shop/web has: ask for another",
        ),
        ("192.0.2.1".to_owned(), "it lies outside of mesh.vip_range"),
    ] {
        let text = asking(&vip);
        let what = format!("Service default/db: spec.vips asks for {vip}");
        assert!(text.contains(&what) && text.contains(reason), "{text}");
    }
    assert_eq!(node.get("services").len(), 1);
}

#[test]
fn services_of_files_swap_their_addresses_and_hand_them_on() {
    let node = Node::start(&NodeOptions {
        vip_range: "127.89.0.0/16",
        ..NodeOptions::default()
    });
    let write = |services: [(&str, &str); 3]| {
        let text: String = services
            .iter()
            .map(|(name, vip)| {
                format!(
                    "---\napiVersion: heddle/v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 8080}}], vips: ['127.89.5.{vip}']}}\n"
                )
            })
            .collect();
        fs::write(node.path("resources/all.yaml"), text).expect("it is written");
        eventually(PATIENCE, "each has what it asks for", || {
            let has = |(name, vip): &(&str, &str)| {
                let service = node.service(&format!("default/{name}"))?;
                (service["status"]["vips"][0] == format!("127.89.5.{vip}")).then_some(())
            };
            let all = services.iter().all(|service| has(service).is_some());
            (all && node.get("services").len() == 3).then_some(())
        });
    };
    write([("web", "5"), ("db", "6"), ("old", "7")]);
    write([("web", "6"), ("db", "5"), ("new", "7")]);
}

#[test]
fn a_stale_write_is_refused() {
    let node = Node::start(&NodeOptions::default());
    node.apply(BACKENDS);
    let service = eventually(PATIENCE, "the service is seen", || node.service("shop/web"));
    let version = service["metadata"]["resourceVersion"].as_i64().unwrap();
    let edited = BACKENDS.replace(
        "namespace: shop",
        &format!("namespace: shop, resourceVersion: {version}"),
    );
    let first = node.heddle_with(&["apply", "-f", "-"], &edited.replace("fall: 1", "fall: 2"));
    assert!(first.status.success(), "{}", stderr(&first));
    let second = node.heddle_with(&["apply", "-f", "-"], &edited.replace("fall: 1", "fall: 3"));
    assert_eq!(second.status.code(), Some(1));
    assert!(
        stderr(&second).contains("was changed meanwhile"),
        "{}",
        stderr(&second)
    );
}

#[test]
fn dry_run_and_diff_change_nothing() {
    let node = Node::start(&NodeOptions::default());
    node.apply(BACKENDS);
    eventually(PATIENCE, "the service is seen", || node.service("shop/web"));
    let edited = BACKENDS.replace("fall: 1", "fall: 9");
    let diff = node.heddle_with(&["apply", "--diff", "-f", "-"], &edited);
    let text = String::from_utf8_lossy(&diff.stdout).into_owned();
    assert!(
        text.contains("- spec.health.fall: 1") && text.contains("+ spec.health.fall: 9"),
        "{text}"
    );
    let dry = node.heddle_with(&["apply", "--dry-run", "-f", "-"], &edited);
    assert!(String::from_utf8_lossy(&dry.stdout).contains("configured (dry run)"));
    assert!(node.apply(BACKENDS).contains("unchanged"));
}

#[test]
fn what_was_applied_survives_a_restart_and_keeps_its_virtual_ip() {
    let mut node = Node::start(&NodeOptions::default());
    node.apply(BACKENDS);
    let vip = node.vip("shop/web");
    node.kill();
    node.launch();
    assert_eq!(node.vip("shop/web"), vip);
    node.ok(&["delete", "service", "web", "-n", "shop"]);
    eventually(PATIENCE, "the service is gone", || {
        node.service("shop/web").is_none()
    });
    node.apply(BACKENDS);
    assert_eq!(
        node.vip("shop/web"),
        vip,
        "re-created, it finds its address again"
    );
}

#[test]
fn the_resources_folder_is_followed() {
    let node = Node::start(&NodeOptions::default());
    let file = node.path("resources").join("web.yaml");
    std::fs::write(&file, BACKENDS).unwrap();
    let service = eventually(PATIENCE, "the file's service is there", || {
        node.service("shop/web")
    });
    assert_eq!(service["managedBy"], "file:n1");
    let refused = node.heddle_with(
        &["apply", "-f", "-"],
        &BACKENDS.replace("fall: 1", "fall: 2"),
    );
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        stderr(&refused).contains("managed by file:n1: change or remove it in the file"),
        "{}",
        stderr(&refused)
    );

    std::fs::write(&file, "apiVersion: heddle/v1\nkind: Srvice\n").unwrap();
    eventually(PATIENCE, "the bad file is named", || {
        let (status, body) = node.readyz()?;
        let text = body["reasons"].to_string();
        (status == 200 && text.contains("web.yaml") && text.contains("Srvice")).then_some(())
    });
    assert!(
        node.service("shop/web").is_some(),
        "what it defined before stays"
    );

    std::fs::remove_file(&file).unwrap();
    eventually(PATIENCE, "the service goes with its file", || {
        node.service("shop/web").is_none()
    });
}

#[test]
fn a_registered_process_is_selected_beside_containers() {
    let node = Node::start(&NodeOptions::default());
    let a = Whoami::start("a", &[]);
    node.apply(&BACKENDS.replace("spec:", "spec:\n  selector: app=web"));
    let registration = format!(
        "{{id: web-1, namespace: shop, labels: {{app: web}}, ports: [{}], check: {{tcp: {{}}, interval: 100ms}}}}",
        a.http.port()
    );
    let file = node.path("registration.yaml");
    std::fs::write(&file, registration).unwrap();
    node.ok(&["register", file.to_str().unwrap()]);
    // Its port is not the service's: it has only one, which is then the target.
    node.eligible("shop/web", 1);
    let vip = door(&node);
    assert_eq!(http::get(vip, "/id").unwrap().body.trim(), "a");
    assert!(node.workload("web-1").is_some());
    node.ok(&["deregister", "web-1"]);
    node.eligible("shop/web", 0);
    assert_eq!(node.heddle(&["deregister", "web-1"]).status.code(), Some(1));
}

#[test]
fn draining_an_endpoint_takes_it_out_and_undraining_brings_it_back() {
    let node = Node::start(&NodeOptions::default());
    let (a, b) = (Whoami::start("a", &[]), Whoami::start("b", &[]));
    node.apply(&format!(
        "{BACKENDS}{}{}",
        endpoint("a", a.http),
        endpoint("b", b.http)
    ));
    node.eligible("shop/web", 2);
    node.ok(&["drain", "endpoint", "web/a", "--reason", "maintenance"]);
    node.eligible("shop/web", 1);
    let drained = &node.endpoints("shop/web")[0];
    assert_eq!(drained["state"], "draining");
    assert!(drained["reason"].as_str().unwrap().contains("maintenance"));
    node.ok(&["undrain", "endpoint", "web/a"]);
    node.eligible("shop/web", 2);
    let unclear = node.heddle(&["drain", "endpoint", "web/"]);
    assert_eq!(unclear.status.code(), Some(2));
    assert!(
        stderr(&unclear).contains("not unique"),
        "{}",
        stderr(&unclear)
    );
    assert_eq!(
        node.heddle(&["drain", "endpoint", "nobody"]).status.code(),
        Some(1)
    );
}

#[test]
fn a_watch_tells_what_comes_and_goes() {
    let node = Node::start(&NodeOptions::default());
    let words = ["get", "services", "-A", "-w", "-o", "json"];
    let watching = Watching::start(&node, &words);
    node.apply(BACKENDS);
    let first: serde_json::Value = serde_json::from_str(&watching.sees(&[])).expect("JSON");
    assert_eq!(
        (&first["type"], &first["object"]["metadata"]["name"]),
        (&"ADDED".into(), &"web".into())
    );
    node.ok(&["delete", "service", "web", "-n", "shop"]);
    watching.sees(&["DELETED"]);
}

#[test]
fn variables_are_printed_and_given_to_a_command() {
    let node = Node::start(&NodeOptions::default());
    node.apply(BACKENDS);
    let vip = node.vip("shop/web");
    let shell = node.ok(&["env", "-n", "shop"]);
    assert!(
        shell.contains(&format!("export WEB_SERVICE_HOST='{vip}'")),
        "{shell}"
    );
    let docker = node.ok(&["env", "web", "-n", "shop", "-o", "docker"]);
    assert!(
        docker.contains(&format!("WEB_PORT_8080_TCP=tcp://{vip}:8080")),
        "{docker}"
    );
    let ran = node.ok(&[
        "env",
        "-n",
        "shop",
        "--",
        "sh",
        "-c",
        "echo $WEB_SERVICE_PORT_HTTP",
    ]);
    assert_eq!(ran.trim(), "8080");
    assert_eq!(
        node.heddle(&["env", "-n", "shop", "--", "sh", "-c", "exit 7"])
            .status
            .code(),
        Some(7)
    );
    assert_eq!(
        node.heddle(&["env", "nobody", "-n", "shop"]).status.code(),
        Some(1)
    );
}

#[test]
fn errors_and_exit_statuses_are_those_promised() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("heddle.toml");
    std::fs::write(&config, "[node]\nnmae = \"x\"\n").unwrap();
    let config = config.to_str().unwrap();
    for words in [&["check", config][..], &["up", "--config", config]] {
        let output = heddle(words, "");
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        let text = stderr(&output);
        assert!(
            text.starts_with("error: ") && text.contains("did you mean `name`?"),
            "{text}"
        );
    }
    let nobody = heddle(
        &[
            "--server",
            "unix:///nonexistent/heddle.sock",
            "get",
            "services",
        ],
        "",
    );
    assert_eq!(nobody.status.code(), Some(1));
    assert!(
        stderr(&nobody).contains("no node answers"),
        "{}",
        stderr(&nobody)
    );
    assert_eq!(heddle(&["get", "sevices"], "").status.code(), Some(2));
    assert_eq!(heddle(&["frobnicate"], "").status.code(), Some(2));
    let good = heddle(&["check", "/dev/stdin"], "");
    assert_eq!(
        good.status.code(),
        Some(2),
        "an empty manifest is no manifest"
    );
}

#[test]
fn two_nodes_cannot_share_a_folder() {
    let node = Node::start(&NodeOptions::default());
    let config = node.path("heddle.toml");
    let second = heddle(&["up", "--config", config.to_str().unwrap()], "");
    assert_eq!(second.status.code(), Some(1));
    assert!(
        stderr(&second).contains("another heddle uses it"),
        "{}",
        stderr(&second)
    );
}

#[test]
fn the_tcp_door_only_reads_and_refuses_foreign_hosts() {
    let node = Node::start(&NodeOptions::default());
    let door = node.logged_address("admin listens");
    assert_eq!(http::get(door, "/healthz").unwrap().status, 200);
    assert_eq!(http::get(door, "/v1/services").unwrap().status, 200);
    assert_eq!(http::post(door, "/v1/apply", BACKENDS).unwrap().status, 405);
    let rebound =
        http::request("GET", door, "/v1/services", &[("host", "evil.example")], "").unwrap();
    assert_eq!(rebound.status, 403);
    assert_eq!(http::get(door, "/v1/nonsense").unwrap().status, 404);
    let metrics = http::get(door, "/metrics").unwrap().body;
    for name in [
        "heddle_build_info",
        "heddle_registry_up 1",
        "heddle_registry_revision",
        "heddle_snapshot_age_seconds",
    ] {
        assert!(metrics.contains(name), "{name} is missing");
    }
}

#[test]
fn a_node_drains_before_it_ends() {
    let mut node = Node::start(&NodeOptions::default());
    let a = Whoami::start("a", &[]);
    node.apply(&format!("{BACKENDS}{}", endpoint("a", a.http)));
    node.eligible("shop/web", 1);
    let vip = door(&node);
    // It is under way until its last byte is sent.
    let mut upload = TcpStream::connect(vip).expect("it is listened on");
    upload.set_read_timeout(Some(PATIENCE)).expect("an option");
    let request =
        "POST /echo HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: 4\r\n\r\npin";
    upload.write_all(request.as_bytes()).expect("it is taken");
    eventually(PATIENCE, "the request is under way", || {
        node.endpoints("shop/web")[0]["inFlight"] == 1
    });
    node.signal(libc::SIGTERM);
    eventually(PATIENCE, "the node says that it drains", || {
        node.readyz().is_some_and(|(status, _)| status == 503)
    });
    upload.write_all(b"g").expect("it is taken");
    let mut answer = String::new();
    upload.read_to_string(&mut answer).expect("an answer");
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("ping"),
        "what was under way was answered: {answer}"
    );
    node.ends();
}
