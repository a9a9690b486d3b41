//! `tcp` ports: a connection is given to an endpoint, then bytes are relayed.

use std::rc::Rc;

use tokio::net::TcpStream;

use crate::accept::reset;
use crate::connections::{self, Kind, Slot};
use crate::metrics::{Active, Open};
use crate::options::limits;
use crate::pick::{self, Tried, hold_off};
use crate::relay::{Early, Moved, relay};
use crate::stream::{ClientStream, EndpointStream};
use crate::target::{InFlight, Port, View};
use crate::tls;
use crate::worker::Worker;

/// Serves a connection in a task of its own.
pub(crate) fn serve(worker: &Rc<Worker>, client: TcpStream, port: Rc<Port>, view: View) {
    let idle = view.idle_timeout;
    let kind = match view.tls {
        Some(_) => Kind::Handshake,
        None => Kind::Relay,
    };
    connections::spawn(worker, kind, idle, |slot| {
        Connection {
            worker: Rc::clone(worker),
            port,
            view,
            slot,
        }
        .run(client)
    });
}

struct Connection {
    worker: Rc<Worker>,
    port: Rc<Port>,
    view: View,
    slot: Rc<Slot>,
}

impl Connection {
    async fn run(self, client: TcpStream) {
        let _active = Active::new(&self.port.stats);
        let client = match self.view.tls {
            None => ClientStream::Tcp(client),
            Some(_) => {
                let handshake = tls::accept(&self.worker, &self.port, client, false);
                // Boxed, or every connection in cleartext would hold room for it.
                let Some(client) = Box::pin(handshake).await else {
                    return;
                };
                self.slot.set_kind(Kind::Relay);
                client
            }
        };
        let Some((endpoint, in_flight)) = self.connect().await else {
            return reset(client.tcp());
        };
        let counted = self.port.counted(in_flight.endpoint());
        let count = Moved {
            activity: &self.slot.activity,
            port: &self.port.stats,
            endpoint: counted.as_ref().map(Open::new),
        };
        if let Err(error) = relay(&self.worker, client, endpoint, Early::default(), count).await {
            tracing::debug!(service = %self.port.key(), %error, "relayed connection broke");
        }
    }

    /// A connection to the first endpoint that answers, each tried at most once.
    async fn connect(&self) -> Option<(EndpointStream, InFlight)> {
        let service = self.port.key();
        let mut tried = Tried::default();
        let mut timeouts = 0;
        while timeouts < limits::CONNECT_TIMEOUTS {
            let Some(index) = pick::pick(&self.view, &tried) else {
                break;
            };
            let endpoint = &self.view.endpoints[index];
            let in_flight = InFlight::new(&self.view, index);
            let connected = tls::dial(&self.port.tls, &self.view, endpoint);
            match connected.await {
                Ok(stream) => {
                    hold_off::end(endpoint);
                    return Some((stream, in_flight));
                }
                Err(error) => {
                    self.port.stats.connect_failures.add(1);
                    if let Some(counted) = self.port.counted(endpoint) {
                        counted.refused();
                    }
                    timeouts += u32::from(error.timed_out());
                    if error.unanswered() {
                        self.port.hold_off(endpoint);
                    }
                    let error = error.in_words();
                    tracing::debug!(%service, endpoint = %endpoint.id, error, "trying the next endpoint");
                    tried.add(endpoint);
                }
            }
        }
        if tried.is_empty() {
            self.port.stats.unavailable.add(1);
            tracing::debug!(%service, reason = self.view.unavailable, "connection refused");
        } else {
            tracing::debug!(%service, "connection refused: no endpoint could be connected to");
        }
        None
    }
}
