//! Bytes.

use std::io::ErrorKind;
use std::sync::atomic::Ordering;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Backend, Mesh, Refusing, at, eventually, soon};

async fn echo() -> Backend {
    Backend::raw(|mut stream, _| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await
}

#[tokio::test]
async fn bytes_pass_both_ways_and_are_counted() {
    let backend = echo().await;
    let mut mesh = Mesh::start();
    let db = mesh.service("shop/db", "protocol: tcp", "");
    mesh.endpoints("shop/db", vec![at("a", backend.address)]);
    let mut client = TcpStream::connect(db).await.unwrap();
    let mut back = [0; 4];
    for _ in 0..10 {
        client.write_all(b"ping").await.unwrap();
        soon("the echo", client.read_exact(&mut back))
            .await
            .unwrap();
        assert_eq!(&back, b"ping");
    }
    for direction in ["received", "sent"] {
        let bytes = format!(
            "heddle_bytes_total{{namespace=\"shop\",service=\"db\",direction=\"{direction}\"}}"
        );
        eventually("they are counted", || mesh.metric(&bytes) == 40.0).await;
    }
    assert_eq!(
        (
            mesh.in_flight("shop/db", 0),
            mesh.metric("heddle_connections_active")
        ),
        (1, 1.0)
    );
    drop(client);
    eventually("load and connection are gone", || {
        mesh.in_flight("shop/db", 0) == 0 && mesh.metric("heddle_connections_active") == 0.0
    })
    .await;
    assert_eq!(mesh.metric("heddle_connections_total"), 1.0);
}

#[tokio::test]
async fn the_end_of_one_direction_leaves_the_other_open() {
    const TOTAL: usize = 10 << 20;
    let backend = Backend::raw(|mut stream, bytes| async move {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        bytes.fetch_add(all.len(), Ordering::SeqCst);
        stream.write_all(&vec![9; TOTAL]).await.unwrap();
    })
    .await;
    let mut mesh = Mesh::start();
    let db = mesh.service("shop/db", "protocol: tcp", "");
    mesh.endpoints("shop/db", vec![at("a", backend.address)]);
    let mut client = TcpStream::connect(db).await.unwrap();
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut all = Vec::new();
    soon("10 MiB", client.read_to_end(&mut all)).await.unwrap();
    assert_eq!((backend.requests(), all.len()), ("question".len(), TOTAL));
}

#[tokio::test]
async fn a_reset_of_the_endpoint_is_a_reset_for_the_client() {
    let backend = Backend::raw(|mut stream, _| async move {
        stream.read_u8().await.unwrap();
        SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    })
    .await;
    let mut mesh = Mesh::start();
    let db = mesh.service("shop/db", "protocol: tcp", "");
    mesh.endpoints("shop/db", vec![at("a", backend.address)]);
    let mut client = TcpStream::connect(db).await.unwrap();
    client.write_all(b"x").await.unwrap();
    let end = soon("the end", client.read_u8()).await.unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_reset_of_the_client_is_a_reset_for_the_endpoint() {
    let (kinds, mut ends) = tokio::sync::mpsc::unbounded_channel();
    let backend = Backend::raw(move |mut stream, _| {
        let kinds = kinds.clone();
        async move {
            stream.read_u8().await.unwrap();
            kinds
                .send(stream.read_u8().await.unwrap_err().kind())
                .unwrap();
        }
    })
    .await;
    let mut mesh = Mesh::start();
    let db = mesh.service("shop/db", "protocol: tcp", "");
    mesh.endpoints("shop/db", vec![at("a", backend.address)]);
    let mut client = TcpStream::connect(db).await.unwrap();
    client.write_all(b"x").await.unwrap();
    eventually("the byte has passed", || {
        mesh.metric("heddle_bytes_total{namespace=\"shop\",service=\"db\",direction=\"received\"}")
            == 1.0
    })
    .await;
    SockRef::from(&client)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(client);
    assert_eq!(
        soon("the endpoint's end", ends.recv()).await,
        Some(ErrorKind::ConnectionReset)
    );
}

#[tokio::test]
async fn nobody_there_is_a_reset() {
    let mut mesh = Mesh::start();
    let db = mesh.service("shop/db", "protocol: tcp", "");
    // The reset may come before connect(2) has returned.
    let end = match TcpStream::connect(db).await {
        Ok(mut client) => soon("the end", client.read_u8()).await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    assert_eq!(mesh.metric("heddle_unavailable_total"), 1.0);
}

#[tokio::test]
async fn an_endpoint_that_refuses_is_passed_over() {
    let backend = echo().await;
    let gone = Refusing::new();
    let mut mesh = Mesh::start();
    let db = mesh.service("shop/db", "protocol: tcp", "");
    mesh.endpoints(
        "shop/db",
        vec![
            at("a", backend.address),
            at("b", gone.address),
            at("c", gone.address),
        ],
    );
    for _ in 0..9 {
        let mut client = TcpStream::connect(db).await.unwrap();
        client.write_all(b"x").await.unwrap();
        assert_eq!(soon("the echo", client.read_u8()).await.unwrap(), b'x');
    }
}

#[tokio::test]
async fn a_relay_on_which_nothing_moves_is_cut_off() {
    let backend = echo().await;
    let mut mesh = Mesh::start();
    let db = mesh.service("shop/db", "protocol: tcp", "timeouts: {idle: 1s}");
    mesh.endpoints("shop/db", vec![at("a", backend.address)]);
    let mut client = TcpStream::connect(db).await.unwrap();
    client.write_all(b"x").await.unwrap();
    assert_eq!(soon("the echo", client.read_u8()).await.unwrap(), b'x');
    assert!(soon("the end", client.read_u8()).await.is_err());
}

#[tokio::test]
async fn least_connections_counts_open_ones() {
    let backends = [echo().await, echo().await];
    let mut mesh = Mesh::start();
    let db = mesh.service(
        "shop/db",
        "protocol: tcp",
        "loadBalancing: {policy: least-connections}",
    );
    mesh.endpoints(
        "shop/db",
        vec![at("a", backends[0].address), at("b", backends[1].address)],
    );
    let mut open = Vec::new();
    for n in 1..=10 {
        open.push(TcpStream::connect(db).await.unwrap());
        let total = || mesh.in_flight("shop/db", 0) + mesh.in_flight("shop/db", 1);
        eventually("it has its endpoint", || total() == n).await;
    }
    assert_eq!(
        (mesh.in_flight("shop/db", 0), mesh.in_flight("shop/db", 1)),
        (5, 5)
    );
}

#[tokio::test]
async fn a_sender_faster_than_its_receiver_is_held_back() {
    let backend = Backend::raw(|stream, _| async move {
        let _stream = stream;
        std::future::pending::<()>().await;
    })
    .await;
    let mut mesh = Mesh::start();
    let db = mesh.service("shop/db", "protocol: tcp", "");
    mesh.endpoints("shop/db", vec![at("a", backend.address)]);
    let mut client = TcpStream::connect(db).await.unwrap();
    let chunk = vec![0; 1 << 20];
    let mut sent = 0;
    while let Ok(written) =
        tokio::time::timeout(Duration::from_millis(300), client.write(&chunk)).await
    {
        sent += written.unwrap();
        assert!(
            sent < 64 << 20,
            "{sent} bytes were taken for a receiver that reads nothing"
        );
    }
}
