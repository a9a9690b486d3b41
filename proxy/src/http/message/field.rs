//! The fields that a proxy has to know; all others pass as they are.

/// What a field is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Field {
    /// Passed on.
    Other,
    /// For this hop only (RFC 9110, 7.6.1), and nothing that we look into.
    Hop,
    Connection,
    ContentLength,
    TransferEncoding,
    Host,
    Te,
    Upgrade,
    Expect,
    ContentType,
    ForwardedFor,
    ForwardedProto,
    ForwardedHost,
    /// RFC 7239.
    Forwarded,
    Via,
    RequestId,
    /// W3C Trace Context.
    TraceParent,
}

impl Field {
    /// Which one a name is, whatever its case.
    pub(in crate::http) fn of(name: &[u8]) -> Field {
        // Nine of ten names are told from all of these by their length and first letter.
        let known: &[(&[u8], Field)] = match (name.len(), name.first().map(|c| c | 0x20)) {
            (2, Some(b't')) => &[(b"te", Field::Te)],
            (3, Some(b'v')) => &[(b"via", Field::Via)],
            (4, Some(b'h')) => &[(b"host", Field::Host)],
            (6, Some(b'e')) => &[(b"expect", Field::Expect)],
            (7, Some(b'u')) => &[(b"upgrade", Field::Upgrade)],
            (9, Some(b'f')) => &[(b"forwarded", Field::Forwarded)],
            (10, Some(b'c')) => &[(b"connection", Field::Connection)],
            (10, Some(b'k')) => &[(b"keep-alive", Field::Hop)],
            (11, Some(b't')) => &[(b"traceparent", Field::TraceParent)],
            (12, Some(b'c')) => &[(b"content-type", Field::ContentType)],
            (12, Some(b'x')) => &[(b"x-request-id", Field::RequestId)],
            (14, Some(b'c')) => &[(b"content-length", Field::ContentLength)],
            (14, Some(b'h')) => &[(b"http2-settings", Field::Hop)],
            (15, Some(b'x')) => &[(b"x-forwarded-for", Field::ForwardedFor)],
            (16, Some(b'p')) => &[(b"proxy-connection", Field::Hop)],
            (16, Some(b'x')) => &[(b"x-forwarded-host", Field::ForwardedHost)],
            (17, Some(b't')) => &[(b"transfer-encoding", Field::TransferEncoding)],
            (17, Some(b'x')) => &[(b"x-forwarded-proto", Field::ForwardedProto)],
            (18, Some(b'p')) => &[(b"proxy-authenticate", Field::Hop)],
            (19, Some(b'p')) => &[(b"proxy-authorization", Field::Hop)],
            _ => &[],
        };
        let found = known
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map_or(Field::Other, |(_, field)| *field)
    }

    /// Whether it is never passed on as it came: it belongs to this hop, or is written anew.
    pub(in crate::http) fn is_of_hop(self) -> bool {
        matches!(
            self,
            Field::Hop
                | Field::Connection
                | Field::ContentLength
                | Field::TransferEncoding
                | Field::Te
                | Field::Upgrade
        )
    }
}

/// Whether a comma-separated value has this member, whatever its case.
pub(in crate::http) fn names_token(value: &[u8], token: &[u8]) -> bool {
    members(value).any(|member| member.eq_ignore_ascii_case(token))
}

/// The members of a comma-separated value: trimmed, never empty.
pub(super) fn members(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|member| !member.is_empty())
}
