//! After a 101: both sides' sockets are taken from the engine and bytes are relayed (RFC 9110, 7.8).

use std::rc::Rc;
use std::sync::Arc;

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Response};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};

use super::body::ResponseBody;
use super::exchange::{Body, Client};
use super::headers;
use super::io::{ClientIo, EndpointIo};
use crate::connections::{self, Kind};
use crate::relay::{Early, relay};
use crate::target::{InFlight, Port};

/// Answers 101 and relays once the client has got it. The tunnel counts as load of its endpoint until it ends.
pub(super) fn tunnel(
    client: &Rc<Client>,
    port: Rc<Port>,
    in_flight: InFlight,
    client_side: OnUpgrade,
    mut response: Response<Incoming>,
) -> Response<Body> {
    let protocol = response.headers().get(UPGRADE).cloned();
    let endpoint_side = hyper::upgrade::on(&mut response);
    headers::strip(response.headers_mut());
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        response.headers_mut().insert(UPGRADE, protocol);
    }
    let worker = Rc::clone(&client.worker);
    let idle = port
        .view(&worker)
        .map_or(std::time::Duration::MAX, |view| view.idle_timeout);
    connections::spawn(&client.worker, Kind::Relay, idle, |slot| async move {
        let _in_flight = in_flight;
        let sides = tokio::try_join!(client_side, endpoint_side);
        let result = match sides {
            Ok((client, endpoint)) => {
                run(
                    &worker,
                    &port,
                    client,
                    endpoint,
                    &Arc::clone(&slot.activity),
                )
                .await
            }
            Err(error) => Err(std::io::Error::other(error)),
        };
        if let Err(error) = result {
            tracing::debug!(service = %port.key(), %error, "upgraded connection broke");
        }
    });
    response.map(|_| ResponseBody::empty())
}

async fn run(
    worker: &crate::worker::Worker,
    port: &Port,
    client: Upgraded,
    endpoint: Upgraded,
    activity: &connections::Activity,
) -> std::io::Result<()> {
    let unknown = || std::io::Error::other("a socket of another kind came back from the engine");
    let client = client.downcast::<ClientIo>().map_err(|_| unknown())?;
    let endpoint = endpoint.downcast::<EndpointIo>().map_err(|_| unknown())?;
    let (stream, _active, begun) = client.io.into_parts();
    let early = Early {
        from_client: [client.read_buf.as_ref(), &begun].concat(),
        from_endpoint: endpoint.read_buf.to_vec(),
    };
    relay(
        worker,
        stream,
        endpoint.io.into_stream(),
        early,
        activity,
        &port.stats,
    )
    .await
}
