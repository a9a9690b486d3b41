//! gRPC calls end to end: streams both ways, statuses, deadlines and cancellation, as its HTTP/2 mapping has them.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::future::poll_fn;
use h2::Reason;
use h2::client::SendRequest;
use h2::server::SendResponse;
use http::{HeaderMap, Request, Response};
use tokio::net::TcpStream;

use crate::support::{Backend, Mesh, at, eventually, soon};

type Incoming = Request<h2::RecvStream>;

/// An endpoint that does with each call what `serve` says.
async fn serving<F, Fut>(serve: F) -> Backend
where
    F: Fn(Incoming, SendResponse<Bytes>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    Backend::raw(move |stream, _| {
        let serve = serve.clone();
        async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(serve(request, respond));
            }
        }
    })
    .await
}

fn head() -> Response<()> {
    let head = Response::builder().header("content-type", "application/grpc");
    head.body(()).unwrap()
}

fn status(code: &str) -> HeaderMap {
    HeaderMap::from_iter([("grpc-status".parse().unwrap(), code.parse().unwrap())])
}

async fn client(address: SocketAddr) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    client.ready().await.unwrap()
}

fn call(fields: &[(&str, &str)]) -> Request<()> {
    let mut call = Request::post("http://web/pkg.Service/Call")
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in fields {
        call = call.header(*name, *value);
    }
    call.body(()).unwrap()
}

async fn mesh_of(backend: &Backend) -> (Mesh, SocketAddr) {
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http, upstreamProtocol: h2c", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    (mesh, web)
}

/// What endpoints were told of the end of their calls.
type Resets = Arc<Mutex<Vec<Reason>>>;

async fn note_reset(respond: &mut SendResponse<Bytes>, resets: &Resets) {
    let reason = poll_fn(|cx| respond.poll_reset(cx)).await.unwrap();
    resets.lock().unwrap().push(reason);
}

#[tokio::test]
async fn a_call_streams_both_ways_at_once() {
    let backend = serving(|request, mut respond| async move {
        assert_eq!(request.headers()["te"], "trailers");
        let mut answer = respond.send_response(head(), false).unwrap();
        let mut messages = request.into_body();
        while let Some(message) = messages.data().await {
            let message = message.unwrap();
            messages
                .flow_control()
                .release_capacity(message.len())
                .unwrap();
            answer.send_data(message, false).unwrap();
        }
        answer.send_trailers(status("0")).unwrap();
    })
    .await;
    let (_mesh, web) = mesh_of(&backend).await;
    let mut client = client(web).await;
    let (response, mut messages) = client.send_request(call(&[]), false).unwrap();
    let response = soon("the head before any message", response).await.unwrap();
    let mut answers = response.into_body();
    for message in ["one", "two", "three"] {
        messages.send_data(message.into(), false).unwrap();
        let answer = soon("its echo", answers.data()).await.unwrap().unwrap();
        assert_eq!(answer, message);
    }
    messages.send_data(Bytes::new(), true).unwrap();
    let trailers = soon("the end", async {
        assert!(answers.data().await.is_none());
        answers.trailers().await
    });
    assert_eq!(trailers.await.unwrap().unwrap()["grpc-status"], "0");
}

#[tokio::test]
async fn a_response_of_trailers_only_stays_one() {
    let backend = serving(|_, mut respond| async move {
        let mut refusal = head();
        refusal.headers_mut().extend(status("5"));
        respond.send_response(refusal, true).unwrap();
    })
    .await;
    let (_mesh, web) = mesh_of(&backend).await;
    let mut client = client(web).await;
    let (response, _messages) = client.send_request(call(&[]), true).unwrap();
    let response = soon("the response", response).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "5");
    assert!(response.body().is_end_stream(), "nothing follows");
}

#[tokio::test]
async fn a_client_that_cancels_before_the_answer_cancels_at_the_endpoint() {
    let resets = Resets::default();
    let noted = Arc::clone(&resets);
    let backend = serving(move |_, mut respond| {
        let noted = Arc::clone(&noted);
        async move { note_reset(&mut respond, &noted).await }
    })
    .await;
    let (mesh, web) = mesh_of(&backend).await;
    let mut client = client(web).await;
    let (response, mut messages) = client.send_request(call(&[]), false).unwrap();
    messages.send_data("hello".into(), false).unwrap();
    eventually("the call at the endpoint", || {
        mesh.in_flight("shop/web", 0) == 1
    })
    .await;
    messages.send_reset(Reason::CANCEL);
    drop(response);
    eventually("its end there", || {
        *resets.lock().unwrap() == [Reason::CANCEL]
    })
    .await;
    eventually("nothing in flight", || mesh.in_flight("shop/web", 0) == 0).await;
}

#[tokio::test]
async fn a_client_that_cancels_amid_the_answer_cancels_at_the_endpoint() {
    let resets = Resets::default();
    let noted = Arc::clone(&resets);
    let backend = serving(move |request, mut respond| {
        let noted = Arc::clone(&noted);
        async move {
            let mut answer = respond.send_response(head(), false).unwrap();
            answer.send_data("first".into(), false).unwrap();
            let reason = poll_fn(|cx| answer.poll_reset(cx)).await.unwrap();
            noted.lock().unwrap().push(reason);
            drop(request);
        }
    })
    .await;
    let (mesh, web) = mesh_of(&backend).await;
    let mut client = client(web).await;
    let (response, mut messages) = client.send_request(call(&[]), false).unwrap();
    let mut answers = soon("the response", response).await.unwrap().into_body();
    assert_eq!(
        soon("a message", answers.data()).await.unwrap().unwrap(),
        "first"
    );
    messages.send_reset(Reason::CANCEL);
    drop(answers);
    eventually("its end there", || {
        *resets.lock().unwrap() == [Reason::CANCEL]
    })
    .await;
    eventually("nothing in flight", || mesh.in_flight("shop/web", 0) == 0).await;
}

#[tokio::test]
async fn an_endpoint_that_cancels_amid_its_answer_cancels_at_the_client() {
    let backend = serving(|request, mut respond| async move {
        let mut answer = respond.send_response(head(), false).unwrap();
        answer.send_data("first".into(), false).unwrap();
        // Until the client has it: what is queued does not survive a reset.
        request.into_body().data().await.unwrap().unwrap();
        answer.send_reset(Reason::CANCEL);
    })
    .await;
    let (_mesh, web) = mesh_of(&backend).await;
    let mut client = client(web).await;
    let (response, mut messages) = client.send_request(call(&[]), false).unwrap();
    let mut answers = soon("the response", response).await.unwrap().into_body();
    assert_eq!(
        soon("a message", answers.data()).await.unwrap().unwrap(),
        "first"
    );
    messages.send_data("go on".into(), false).unwrap();
    let end = soon("the end", answers.data()).await.unwrap().unwrap_err();
    assert_eq!(end.reason(), Some(Reason::CANCEL));
}

#[tokio::test]
async fn a_call_whose_deadline_has_passed_ends_at_both_sides() {
    let resets = Resets::default();
    let told = Arc::new(Mutex::new(None));
    let (noted, telling) = (Arc::clone(&resets), Arc::clone(&told));
    let backend = serving(move |request, mut respond| {
        let (noted, telling) = (Arc::clone(&noted), Arc::clone(&telling));
        async move {
            *telling.lock().unwrap() = request.headers().get("grpc-timeout").cloned();
            note_reset(&mut respond, &noted).await;
        }
    })
    .await;
    let (_mesh, web) = mesh_of(&backend).await;
    let mut client = client(web).await;
    let (response, _messages) = client
        .send_request(call(&[("grpc-timeout", "50m")]), true)
        .unwrap();
    let response = soon("the response", response).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["grpc-status"], "4", "DEADLINE_EXCEEDED");
    assert_eq!(response.headers()["x-heddle-error"], "timeout");
    eventually("its end at the endpoint", || {
        *resets.lock().unwrap() == [Reason::CANCEL]
    })
    .await;
    let told = told.lock().unwrap().clone();
    assert_eq!(told.expect("the deadline is passed on"), "50m");
}

#[tokio::test]
async fn a_deadline_is_for_grpc_only() {
    let backend = Backend::http1("a").await;
    let mut mesh = Mesh::start();
    let web = mesh.service("shop/web", "protocol: http", "");
    mesh.endpoints("shop/web", vec![at("a", backend.address)]);
    let mut client = client(web).await;
    let request = Request::get("http://web/drip/5").header("grpc-timeout", "1n");
    let (response, _) = client
        .send_request(request.body(()).unwrap(), true)
        .unwrap();
    assert_eq!(soon("the response", response).await.unwrap().status(), 200);
}
