//! After a 101: bytes are relayed (RFC 9110, 7.8).

use std::rc::Rc;
use std::time::Duration;

use super::{Side, Talk};
use crate::connections::{self, Kind};
use crate::http::endpoint::Connection;
use crate::http::exchange::{Client, Ending};
use crate::http::message::{Coding, ResponseHead, response_head};
use crate::relay::{Early, Moved, relay};

/// A connection that speaks another protocol now. It counts as load of its endpoint until it ends.
#[derive(Debug)]
pub(in crate::http) struct Tunnel {
    ending: Ending,
    /// Taken along when the tunnel begins.
    connection: Option<Connection>,
    pub(super) early: Early,
}

impl Talk<'_> {
    /// The endpoint has agreed to another protocol.
    pub(super) fn switch(
        &mut self,
        head: &ResponseHead<'_, '_>,
        ending: Ending,
        out: &mut Vec<u8>,
    ) {
        let line = (head.status, head.reason);
        response_head(
            out,
            line,
            head.fields.passed(),
            Coding::Raw,
            None,
            Some("upgrade"),
        );
        if let Some(protocol) = head.upgrade {
            // Before the empty line.
            out.truncate(out.len() - 2);
            out.extend_from_slice(b"upgrade: ");
            out.extend_from_slice(protocol);
            out.extend_from_slice(b"\r\n\r\n");
        }
        self.down.begin_tunnel(Tunnel {
            ending,
            connection: None,
            early: Early::default(),
        });
    }
}

impl Tunnel {
    /// Takes the endpoint's connection along.
    pub(super) fn with(mut self: Box<Self>, connection: Connection) -> Box<Self> {
        self.connection = Some(connection);
        self
    }

    /// Relays in a task of its own, to which the client's connection passes.
    pub(in crate::http::h1) fn run(self, client: &Rc<Client>, side: Side) {
        let Tunnel {
            ending,
            connection,
            mut early,
        } = self;
        let Some(connection) = connection else {
            return;
        };
        let (stream, active, rest) = side.into_parts();
        early.from_client = rest;
        let worker = Rc::clone(&client.worker);
        let idle = ending
            .port
            .view(&worker)
            .map_or(Duration::MAX, |view| view.idle_timeout);
        connections::spawn(&client.worker, Kind::Relay, idle, |slot| async move {
            // Whole, or only its port would come along: the tunnel is load until it ends.
            let (_active, ending) = (active, ending);
            let (endpoint, open) = connection.into_stream();
            let port = &ending.port;
            let activity = &slot.activity;
            let count = Moved {
                activity,
                port: &port.stats,
                endpoint: open,
            };
            let relayed = relay(&worker, stream, endpoint, early, count).await;
            if let Err(error) = relayed {
                tracing::debug!(service = %port.key(), %error, "upgraded connection broke");
            }
        });
    }
}
