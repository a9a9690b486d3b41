//! What a request asks for: the values in its query and path, checked.

use std::time::Duration;

use http::{Method, StatusCode};

/// The longest time that a request can ask to be kept waiting.
const MAX_WAIT: Duration = Duration::from_secs(3600);
/// The longest execution id.
const MAX_ID: usize = 256;

/// Why a request gets another answer than its path's, or none.
pub(super) enum Failure {
    /// The request asks for something that is not there.
    Refused(StatusCode, String),
    /// No response at all: the connection (HTTP/1.1) or the stream (HTTP/2) ends.
    HungUp,
}

/// The part of a URI after `?`.
#[derive(Clone, Copy)]
pub(super) struct Query<'a>(pub &'a str);

impl<'a> Query<'a> {
    pub fn get(self, key: &str) -> Option<&'a str> {
        self.0
            .split('&')
            .find_map(|pair| match pair.split_once('=') {
                Some((name, value)) => (name == key).then_some(value),
                None => (pair == key).then_some(""),
            })
    }

    pub fn number(self, key: &str, default: u64) -> Result<u64, Failure> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        value
            .parse()
            .map_err(|_| bad(format!("{key}={value}: expected a whole number")))
    }

    pub fn wait(self, key: &str, default: u64) -> Result<Duration, Failure> {
        let wait = Duration::from_millis(self.number(key, default)?);
        if wait > MAX_WAIT {
            return Err(bad(format!(
                "{key}: at most {} (one hour)",
                MAX_WAIT.as_millis()
            )));
        }
        Ok(wait)
    }

    pub fn id(self) -> Result<&'a str, Failure> {
        match self.get("id") {
            Some(id) if !id.is_empty() && id.len() <= MAX_ID => Ok(id),
            _ => Err(bad(format!("id: expected 1 to {MAX_ID} characters"))),
        }
    }
}

pub(super) fn bad(reason: String) -> Failure {
    Failure::Refused(StatusCode::BAD_REQUEST, reason)
}

pub(super) fn need_post(method: &Method) -> Result<(), Failure> {
    if method == Method::POST {
        return Ok(());
    }
    Err(Failure::Refused(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{method}: expected POST"),
    ))
}

/// A status that can stand alone: 1xx only comes ahead of another.
pub(super) fn parse_status(text: &str) -> Result<StatusCode, Failure> {
    let status = text.parse().ok().filter(|code| (200..=599).contains(code));
    status
        .and_then(|code: u16| StatusCode::from_u16(code).ok())
        .ok_or_else(|| bad(format!("{text}: expected a status from 200 to 599")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_looked_up_by_its_whole_key() {
        let query = Query("xms=1&ms=20&flag&id=a=b");
        assert_eq!(query.get("ms"), Some("20"));
        assert_eq!(query.get("flag"), Some(""));
        assert_eq!(query.get("id"), Some("a=b"));
        assert_eq!(query.get("x"), None);
    }

    #[test]
    fn waits_are_bounded() {
        assert!(matches!(Query("ms=3600000").wait("ms", 0), Ok(wait) if wait == MAX_WAIT));
        assert!(Query("ms=3600001").wait("ms", 0).is_err());
        assert!(Query("ms=-1").wait("ms", 0).is_err());
    }

    #[test]
    fn only_final_statuses_can_be_asked_for() {
        for refused in ["100", "199", "600", "999", "", "x", "20"] {
            assert!(parse_status(refused).is_err(), "{refused}");
        }
        assert!(matches!(
            parse_status("503"),
            Ok(StatusCode::SERVICE_UNAVAILABLE)
        ));
    }
}
