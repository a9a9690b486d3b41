//! The questions that upstreams know the answer to.

use std::net::SocketAddr;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::serialize::binary::BinEncodable;
use model::domain::DomainName;
use tracing::debug;

use super::{Handler, Pending};
use crate::forward::{Asker, Flags, ForwardError, Key};
use crate::query_log::Source;
use crate::response::{Frame, absolute};

/// What upstreams said, for a client.
#[derive(Debug)]
pub(crate) struct Response {
    pub code: ResponseCode,
    pub bytes: Vec<u8>,
    pub source: Source,
    /// Who said so.
    pub upstream: Option<SocketAddr>,
}

impl Handler {
    /// Asks the upstreams.
    pub(crate) async fn forward(&self, pending: Box<Pending>) -> Vec<u8> {
        let asked = self.ask_upstreams(&pending).await;
        let (request, client) = (&pending.request, &pending.client);
        self.count(request, client, asked.code, asked.source, pending.started);
        asked.bytes
    }

    /// What upstreams say, and which.
    pub(crate) async fn ask_upstreams(&self, pending: &Pending) -> Response {
        let Pending {
            request,
            query,
            aliases,
            client,
            ..
        } = pending;
        let frame = self.frame(request, client);
        let asked = match aliases.last() {
            None => self.ask(&frame, query).await,
            Some(alias) => self.follow(&frame, query, aliases, alias).await,
        };
        asked.unwrap_or_else(|error| {
            debug!(%query, %error, "dns query not answered by any upstream");
            let code = ResponseCode::ServFail;
            Response {
                code,
                bytes: frame.code(code),
                source: Source::Nobody,
                upstream: None,
            }
        })
    }

    async fn ask(&self, frame: &Frame<'_>, query: &Query) -> Result<Response, ForwardError> {
        let question = query.to_bytes().map_err(|_| ForwardError::NoAnswer)?;
        let name = question[..question.len() - 4].to_ascii_lowercase();
        let metadata = &frame.request.metadata;
        let edns = frame.request.edns.as_ref();
        let key = Key {
            name: &name,
            kind: query.query_type.into(),
            flags: Flags {
                recursion_desired: metadata.recursion_desired,
                checking_disabled: metadata.checking_disabled,
                authentic_data: metadata.authentic_data,
                dnssec_ok: edns.is_some_and(|edns| edns.dnssec_ok),
            },
        };
        let asker = Asker {
            id: metadata.id.to_be_bytes(),
            question: &question,
            recursion_desired: metadata.recursion_desired,
            checking_disabled: metadata.checking_disabled,
            limit: frame.limit.into(),
            opt: frame.opt,
        };
        let (stored, age) = self.forwarder.resolve(&key).await?;
        let bytes = stored.to_vec(&asker, age).ok_or(ForwardError::NoAnswer)?;
        Ok(Response {
            code: stored.code(),
            bytes,
            source: age.map_or(Source::Stale, |_| Source::Upstream),
            upstream: stored.upstream(),
        })
    }

    /// Asks for what the last alias has.
    async fn follow(
        &self,
        frame: &Frame<'_>,
        query: &Query,
        aliases: &[DomainName],
        alias: &DomainName,
    ) -> Result<Response, ForwardError> {
        let name = absolute(alias).ok_or(ForwardError::NoAnswer)?;
        let target = Query::query(name, query.query_type);
        let frame_of_alias = Frame {
            limit: u16::MAX,
            opt: None,
            ..*frame
        };
        let asked = self.ask(&frame_of_alias, &target).await?;
        let message = Message::from_vec(&asked.bytes).map_err(|_| ForwardError::NoAnswer)?;
        let (code, bytes) = frame.answer_of_upstream(query, aliases, message);
        Ok(Response {
            code,
            bytes,
            ..asked
        })
    }
}
