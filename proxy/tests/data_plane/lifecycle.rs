//! Listeners that come and go, changes under load, and the end.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use proxy::{Drained, ListenerKind};
use tokio::net::TcpStream;

use crate::support::client::{request, text};
use crate::support::mesh::{free_port, named, three};
use crate::support::{Backend, Http1, Mesh, at, eventually, http2, port_of, soon};

#[tokio::test]
async fn a_listener_comes_with_its_service_and_goes_with_it() {
    let backend = Backend::http1("a").await;
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    let status = mesh.listener("shop/web");
    assert_eq!((status.kind, status.error), (ListenerKind::NodePort, None));
    let mut open = Http1::connect(web).await;
    assert_eq!(open.get("/").await.body, "a");
    mesh.delete("shop/web");
    assert!(mesh.proxy.listeners().is_empty());
    soon("nobody listens", async {
        while TcpStream::connect(web).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    let reply = open.get("/").await;
    assert_eq!(
        (reply.status, reply.header("x-heddle-error")),
        (503, Some("no-service"))
    );
    eventually("its series are gone", || {
        mesh.metric("heddle_connections_total{namespace=\"shop\"") == 0.0
    })
    .await;
    mesh.service("shop/web", "protocol: http", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    assert_eq!(
        open.get("/").await.body,
        "a",
        "it is found again by its name"
    );
}

#[tokio::test]
async fn a_port_of_another_process_is_an_error_that_mends_itself() {
    let other = TcpListener::bind("0.0.0.0:0").unwrap();
    let backend = Backend::http1("a").await;
    let mut mesh = Mesh::start();
    let web = mesh.service_at("shop/web", port_of(&other), "protocol: http", "");
    let fine = mesh.service("shop/fine", "protocol: http", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    mesh.endpoints("shop/fine", vec![at("a", backend.address)]);
    let error = mesh.listener("shop/web").error.expect("an error");
    assert!(
        error.contains("bind to") && error.contains("in use"),
        "{error}"
    );
    assert_eq!(mesh.listener("shop/fine").error, None);
    assert_eq!(Http1::connect(fine).await.get("/").await.status, 200);
    drop(other);
    eventually("the port is taken over", || {
        mesh.listener("shop/web").error.is_none()
    })
    .await;
    assert_eq!(Http1::connect(web).await.get("/").await.status, 200);
}

#[tokio::test]
async fn of_two_services_with_one_node_port_the_second_waits_for_the_first() {
    let backends = [
        Backend::http1("first").await,
        Backend::http1("second").await,
    ];
    let mut mesh = Mesh::start();
    let port = free_port();
    let address = mesh.service_at("shop/first", port, "protocol: http", "");
    mesh.service_at("shop/second", port, "protocol: http", "");
    mesh.endpoints("shop/first", vec![at("a", backends[0].address)]);
    mesh.endpoints("shop/second", vec![at("b", backends[1].address)]);
    let error = mesh.listener("shop/second").error.expect("an error");
    assert!(
        error.contains("is taken by port main of service shop/first"),
        "{error}"
    );
    assert_eq!(Http1::connect(address).await.get("/").await.body, "first");
    mesh.delete("shop/first");
    assert_eq!(mesh.listener("shop/second").error, None);
    soon("the second is served", async {
        while Http1::connect(address).await.get("/").await.body != "second" {}
    })
    .await;
}

#[tokio::test]
async fn virtual_ips_are_bound_beside_node_ports() {
    let backend = Backend::http1("a").await;
    let mut mesh = Mesh::with_vips();
    mesh.service("shop/web", "targetPort: 8080, protocol: http", "");
    // The service's port is 80, which only root may bind.
    mesh.vip("shop/web", "127.96.7.1".parse().unwrap());
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    let listeners = mesh.proxy.listeners();
    assert_eq!(listeners.len(), 2);
    let vip = listeners
        .iter()
        .find(|l| l.kind == ListenerKind::Vip)
        .unwrap();
    assert_eq!(vip.address, "127.96.7.1:80".parse().unwrap());
    match &vip.error {
        None => assert_eq!(Http1::connect(vip.address).await.get("/").await.body, "a"),
        Some(error) => assert!(error.contains("denied"), "{error}"),
    }
}

/// Asks over and over until told to stop, over kept connections and new ones; counts what is not a 200.
struct Load {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(address: std::net::SocketAddr, clients: usize) -> Self {
        let (stop, asked) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let client = |n: usize| {
            let (stop, asked) = (Arc::clone(&stop), Arc::clone(&asked));
            tokio::spawn(async move {
                let mut client = Http1::connect(address).await;
                while !stop.load(Ordering::SeqCst) {
                    if n.is_multiple_of(2) {
                        client = Http1::connect(address).await;
                    }
                    let reply = if n.is_multiple_of(3) {
                        client.post("/echo", "hello").await
                    } else {
                        client.get("/").await
                    };
                    assert_eq!(reply.status, 200, "{}", reply.body);
                    asked.fetch_add(1, Ordering::SeqCst);
                }
            })
        };
        let tasks = (0..clients).map(client).collect();
        Load { stop, asked, tasks }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    async fn stop(self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        for task in self.tasks {
            task.await.expect("no request failed");
        }
        self.asked.load(Ordering::SeqCst)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_changes_under_load_drop_nothing() {
    let (mut mesh, web, backends) = three().await;
    let all = named(&backends);
    let load = Load::start(web, 6);
    let ports: Vec<u16> = (0..5).map(|_| free_port()).collect();
    for change in 0..1_000 {
        match change % 5 {
            0 => mesh.endpoints("shop/web", all[..2].to_vec()),
            1 => mesh.endpoints("shop/web", all.clone()),
            2 => {
                let other = format!("shop/other-{}", change / 5 % 5);
                mesh.service_at(&other, ports[change / 5 % 5], "protocol: http", "");
            }
            3 => mesh.delete(&format!("shop/other-{}", change / 5 % 5)),
            _ => {
                mesh.service("shop/web", "protocol: http", "timeouts: {connect: 2s}");
            }
        }
        let asked = load.asked();
        eventually("a request per change", || load.asked() > asked).await;
    }
    assert!(load.stop().await >= 1_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_what_is_in_flight_and_takes_nothing_new() {
    let backend = Backend::http1("a").await;
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    let mut slow = Http1::connect(web).await;
    slow.send("GET /drip/30 HTTP/1.1\r\nhost: web\r\n\r\n")
        .await
        .unwrap();
    let mut kept = Http1::connect(web).await;
    kept.get("/").await;
    // Half a request: the second that idle connections have may be over before a busy machine comes to send the rest.
    let (begun, rest) = ("GET / HTTP/1.1\r\n", "host: web\r\n\r\n");
    kept.send(begun).await.unwrap();
    let mut idle = Http1::connect(web).await;
    idle.get("/").await;
    let mut two = http2(web).await;
    let stream = two
        .send_request(request("GET", "/drip/30", ""))
        .await
        .unwrap();
    let mesh = Arc::new(mesh);
    let draining = Arc::clone(&mesh);
    let drain = tokio::spawn(async move { draining.proxy.drain().await });
    soon("nobody new is accepted", async {
        while TcpStream::connect(web).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let reply = kept.try_request(rest).await.expect("a response");
    assert_eq!(
        (reply.status, reply.header("connection")),
        (200, Some("close"))
    );
    assert!(kept.is_closed().await);
    assert!(
        idle.is_closed().await,
        "an idle one is closed after a second"
    );
    assert!(
        soon("the HTTP/2 stream", text(stream))
            .await
            .ends_with("29 ")
    );
    assert!(
        two.send_request(request("GET", "/", "")).await.is_err(),
        "after GOAWAY"
    );
    let reply = soon("the slow response", slow.reply())
        .await
        .expect("whole");
    assert!(reply.body.ends_with("29 "), "{}", reply.body);
    assert_eq!(
        soon("the drain", drain).await.unwrap(),
        Drained { forced: 0 }
    );
}

#[tokio::test]
async fn a_drain_cuts_off_what_does_not_end() {
    let backend = Backend::http1("a").await;
    let mut mesh = Mesh::with(|options| options.drain_timeout = Duration::from_millis(300));
    let web = mesh.service("shop/web", "protocol: http", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    let mut client = Http1::connect(web).await;
    client
        .send("GET /hang HTTP/1.1\r\nhost: web\r\n\r\n")
        .await
        .unwrap();
    eventually("it hangs", || mesh.in_flight("shop/web", 0) == 1).await;
    assert_eq!(
        soon("the drain", mesh.proxy.drain()).await,
        Drained { forced: 1 }
    );
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn connections_that_wait_to_be_accepted_are_served_before_the_listener_goes() {
    let backend = Backend::http1("a").await;
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    let ports = [web.port(), free_port()];
    for moves in 0..30 {
        let address = ([127, 0, 0, 1], ports[moves % 2]);
        let connect =
            |_| std::net::TcpStream::connect(std::net::SocketAddr::from(address)).unwrap();
        let waiting: Vec<_> = (0..16).map(connect).collect();
        mesh.service_at("shop/web", ports[(moves + 1) % 2], "protocol: http", "");
        assert_eq!(
            mesh.listener("shop/web").error,
            None,
            "a port that we just left is ours to take again"
        );
        for stream in waiting {
            stream.set_nonblocking(true).unwrap();
            let stream = TcpStream::from_std(stream).unwrap();
            let mut client = Http1 {
                stream,
                buffer: Default::default(),
            };
            assert_eq!(client.get("/").await.status, 200);
        }
    }
}

#[tokio::test]
async fn inherited_sockets_are_used_and_serve_what_waits_in_them() {
    let backend = Backend::http1("a").await;
    let inherited = TcpListener::bind("[::]:0").unwrap();
    let port = port_of(&inherited);
    let waiting = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut mesh = Mesh::with(|options| {
        options.inherited = proxy::sockets::Inherited::from_listeners(vec![inherited]);
    });
    let web = mesh.service_at("shop/web", port, "protocol: http", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    assert_eq!(mesh.listener("shop/web").error, None);
    let mut client = Http1 {
        stream: waiting,
        buffer: Default::default(),
    };
    assert_eq!(client.get("/").await.body, "a");
    assert_eq!(Http1::connect(web).await.get("/").await.body, "a");
}
