//! Virtual IPs through nftables, in a network namespace of the test's own. Needs root and `nft`.

use std::net::SocketAddr;

use proxy::redirect::RedirectConfig;
use proxy::{ListenerKind, VipMode};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::netns::{Namespace, available};
use crate::support::{Backend, Http1, Mesh, at, eventually, soon};

fn redirected() -> VipMode {
    VipMode::Redirected(RedirectConfig {
        table: "heddle".to_owned(),
        ranges: vec![
            ("10.96.0.0".parse().unwrap(), 16),
            ("fd00:96::".parse().unwrap(), 108),
        ],
        port: 0,
        exceptions: vec![],
    })
}

/// Runs the test in a namespace; the proxy's threads, which it starts, belong to it too.
fn in_a_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    if !available() {
        return;
    }
    Namespace::new().run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test());
    });
}

#[test]
fn services_are_reached_at_their_virtual_ips_of_both_families() {
    in_a_namespace(|| async {
        let backends = [Backend::http1("web").await, Backend::http1("other").await];
        let mut mesh = Mesh::with(|options| options.vips = redirected());
        for (service, number, backend) in [
            ("shop/web", 1, &backends[0]),
            ("shop/other", 2, &backends[1]),
        ] {
            mesh.service(service, "protocol: http", "");
            mesh.vip(service, format!("10.96.0.{number}").parse().unwrap());
            mesh.vip(service, format!("fd00:96::{number}").parse().unwrap());
            mesh.endpoints(service, vec![at("a", backend.address)]);
        }
        for (vip, name) in [
            ("10.96.0.1:80", "web"),
            ("10.96.0.2:80", "other"),
            ("[fd00:96::1]:80", "web"),
            ("[fd00:96::2]:80", "other"),
        ] {
            let vip: SocketAddr = vip.parse().unwrap();
            let mut client = soon("a connection", Http1::connect(vip)).await;
            assert_eq!(client.get("/").await.body, name);
        }
        let vips = mesh
            .proxy
            .listeners()
            .into_iter()
            .filter(|l| l.kind == ListenerKind::Vip);
        assert!(vips.clone().count() == 4 && vips.clone().all(|l| l.error.is_none()));
    });
}

#[test]
fn what_no_service_has_is_refused_also_at_the_listener_itself() {
    in_a_namespace(|| async {
        let backend = Backend::http1("web").await;
        let mut mesh = Mesh::with(|options| options.vips = redirected());
        mesh.service("shop/web", "protocol: http", "");
        mesh.vip("shop/web", "10.96.0.1".parse().unwrap());
        mesh.endpoints("shop/web", vec![at("a", backend.address)]);
        for nobody in ["10.96.0.1:81", "10.96.0.9:80"] {
            let address: SocketAddr = nobody.parse().unwrap();
            assert!(
                soon("a refusal", TcpStream::connect(address))
                    .await
                    .is_err(),
                "{nobody}"
            );
        }
        let vip: SocketAddr = "10.96.0.1:80".parse().unwrap();
        assert_eq!(Http1::connect(vip).await.get("/").await.body, "web");
        mesh.delete("shop/web");
        assert!(
            soon("a refusal", TcpStream::connect(vip)).await.is_err(),
            "the service is gone"
        );
    });
}

#[test]
fn a_connection_outlives_changes_of_the_table() {
    in_a_namespace(|| async {
        let backend = Backend::http1("web").await;
        let mut mesh = Mesh::with(|options| options.vips = redirected());
        mesh.service("shop/web", "protocol: http", "");
        mesh.vip("shop/web", "10.96.0.1".parse().unwrap());
        mesh.endpoints("shop/web", vec![at("a", backend.address)]);
        let vip: SocketAddr = "10.96.0.1:80".parse().unwrap();
        let mut client = Http1::connect(vip).await;
        for number in 2..40 {
            let other = format!("shop/other-{number}");
            mesh.service(&other, "protocol: tcp", "");
            mesh.vip(&other, format!("10.96.0.{number}").parse().unwrap());
            assert_eq!(client.get("/").await.body, "web");
        }
        // A tcp service without endpoints: the reset may come before connect(2) has returned.
        if let Ok(mut nobody) = TcpStream::connect("10.96.0.7:80").await {
            assert!(soon("a reset", nobody.read_u8()).await.is_err());
        }
        eventually("it is counted", || {
            mesh.metric("heddle_unavailable_total{namespace=\"shop\",service=\"other-7\"}") == 1.0
        })
        .await;
    });
}
