//! A sampled log of queries: one in so many, as a structured line each.
//!
//! Where it is off it costs a branch per query; where it is on, only the queries that are logged cost more.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Query, ResponseCode};
use tracing::info;

use crate::handler::Client;

/// Lines that are written within a second at most: writing keeps the thread that answers.
pub const MAX_LINES: u32 = 1_000;

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Our own zones.
    Zone,
    /// What an upstream said before.
    Cache,
    /// The same past its time, because no upstream answers.
    Stale,
    /// An upstream.
    Upstream,
    /// Nobody: a refusal, or a failure.
    Nobody,
}

impl Source {
    /// As in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Source::Zone => "zone",
            Source::Cache => "cache",
            Source::Stale => "stale",
            Source::Upstream => "upstream",
            Source::Nobody => "none",
        }
    }
}

/// Which queries are logged. Shared by all who answer.
#[derive(Debug, Default)]
pub(crate) struct QueryLog {
    /// 0: none.
    every: u32,
    /// Queries of those who have no [`Sampler`].
    count: AtomicU64,
    written: Mutex<Written>,
}

/// What was written in the newest second that had a line.
#[derive(Debug, Default)]
struct Written {
    second: u64,
    lines: u32,
    /// Lines that were left out since the last one that was not.
    left_out: u64,
}

impl Written {
    /// Whether one more may be written, and how many were left out before it.
    fn admit(&mut self, second: u64) -> Option<u64> {
        if self.second != second {
            self.second = second;
            self.lines = 0;
        }
        if self.lines == MAX_LINES {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

impl QueryLog {
    /// Logs one query in `every`; 0: none.
    pub(crate) fn new(every: u32) -> Self {
        QueryLog {
            every,
            ..QueryLog::default()
        }
    }

    /// The turns of one thread.
    pub(crate) fn sampler(&self) -> Sampler {
        Sampler {
            every: self.every,
            left: self.every,
        }
    }

    /// Whether it is the turn of a query that comes to all threads together.
    pub(crate) fn is_turn(&self) -> bool {
        let every = u64::from(self.every);
        every > 0 && self.count.fetch_add(1, Ordering::Relaxed) % every == every - 1
    }

    pub(crate) fn write(
        &self,
        client: &Client,
        query: Option<&Query>,
        code: ResponseCode,
        source: Source,
        took: Duration,
    ) {
        let second = crate::serial::now().into();
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(left_out) = written.admit(second) else {
            return;
        };
        drop(written);
        let name = query.map(|query| query.name.to_string());
        let kind = query.map(|query| query.query_type.to_string());
        let address: IpAddr = client.address.ip().to_canonical();
        info!(
            target: "dns::query",
            client = %address,
            port = client.address.port(),
            transport = %client.transport,
            name = name.as_deref().unwrap_or("-"),
            r#type = kind.as_deref().unwrap_or("-"),
            rcode = crate::metrics::code_label(code),
            source = source.as_str(),
            micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            left_out,
            "dns query"
        );
    }
}

/// Which of one thread's queries are logged.
#[derive(Debug)]
pub(crate) struct Sampler {
    every: u32,
    left: u32,
}

impl Sampler {
    /// Whether it is this query's turn.
    pub(crate) fn is_turn(&mut self) -> bool {
        if self.every == 0 {
            return false;
        }
        self.left -= 1;
        if self.left > 0 {
            return false;
        }
        self.left = self.every;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_so_many_has_its_turn() {
        for (every, turns) in [(0, 0), (1, 12), (3, 4), (100, 0)] {
            let log = QueryLog::new(every);
            let mut sampler = log.sampler();
            let own = (0..12).filter(|_| sampler.is_turn()).count();
            let shared = (0..12).filter(|_| log.is_turn()).count();
            assert_eq!((own, shared), (turns, turns), "1 in {every}");
        }
    }

    #[test]
    fn a_second_has_so_many_lines_and_the_next_tells_what_was_left_out() {
        let mut written = Written::default();
        for _ in 0..MAX_LINES {
            assert_eq!(written.admit(7), Some(0));
        }
        assert_eq!(written.admit(7), None);
        assert_eq!(written.admit(7), None);
        assert_eq!(written.admit(8), Some(2));
        assert_eq!(written.admit(8), Some(0));
    }
}
