//! The tries of a request: which endpoint, whether on a kept connection, and whether once more after a failure.
//!
//! Sent again is only what provably was not processed, or is idempotent; within the port's number of retries and its
//! budget; and only while all that was sent is still at hand. Nothing here does I/O.

use std::rc::Rc;
use std::time::Instant;

use super::endpoint::Failure;
use super::pool::Need;
use super::reply::Problem;
use crate::metrics::RetryResult;
use crate::options::limits;
use crate::pick::{self, Tried, hold_off};
use crate::target::{InFlight, Port, View};

/// Whether the request can be made again, from what is at hand of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resend {
    Possible,
    /// Part of its body is gone.
    Impossible,
}

/// One try.
#[derive(Debug)]
pub(super) struct Try {
    /// Into [`model::snapshot::PortView::endpoints`].
    pub(super) index: usize,
    pub(super) need: Need,
    pub(super) in_flight: InFlight,
    /// When the endpoint was picked.
    pub(super) since: Instant,
}

/// The tries of one request.
#[derive(Debug)]
pub(super) struct Tries {
    port: Rc<Port>,
    view: View,
    /// Its client has sent none before: it would not send it again either (HAProxy's `http-reuse safe`).
    first: bool,
    idempotent: bool,
    tried: Tried,
    /// To be asked again, on a new connection.
    again: Option<usize>,
    new_only: bool,
    timeouts: u32,
    retries: u32,
    not_sent: u32,
    retrying: bool,
    stale: bool,
    /// What went wrong last.
    last: Option<Problem>,
}

impl Tries {
    pub(super) fn new(port: Rc<Port>, view: View, first: bool, idempotent: bool) -> Self {
        Tries {
            port,
            view,
            first,
            idempotent,
            tried: Tried::default(),
            again: None,
            new_only: false,
            timeouts: 0,
            retries: 0,
            not_sent: 0,
            retrying: false,
            stale: false,
            last: None,
        }
    }

    /// Whom to ask now. One that can't be connected to got nothing: the next is asked, each once.
    ///
    /// # Errors
    /// What went wrong with the last one tried, or why there is none to try.
    pub(super) fn pick(&mut self, resend: Resend, since: Instant) -> Result<Try, Problem> {
        let picked = self
            .again
            .take()
            .or_else(|| pick::pick(&self.view, &self.tried));
        let Some(index) = picked else {
            return Err(self.last.take().unwrap_or_else(|| self.nobody()));
        };
        let repeatable = self.idempotent && self.view.retries > 0 && resend == Resend::Possible;
        let need = match (repeatable, self.first) {
            _ if self.new_only => Need::New,
            (true, _) => Need::Any,
            (false, true) => Need::New,
            (false, false) => Need::Sure,
        };
        Ok(Try {
            index,
            need,
            in_flight: InFlight::new(&self.view, index),
            since,
        })
    }

    /// The endpoint answered.
    pub(super) fn succeeded(&mut self, tried: &Try) {
        hold_off::end(&self.view.endpoints[tried.index]);
        self.count_retry(RetryResult::Success);
    }

    /// Counts a request that the endpoint was given and did not answer.
    pub(super) fn unanswered(&self, index: usize) {
        if let Some(counted) = self.port.counted(&self.view.endpoints[index]) {
            counted.failed();
        }
    }

    /// Decides whether there is another try.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn failed(
        &mut self,
        index: usize,
        failure: Failure,
        resend: Resend,
    ) -> Result<(), Problem> {
        // Cloned, as what is decided below changes what the view is kept beside.
        let view = self.view.clone();
        let endpoint = &view.endpoints[index];
        match failure {
            Failure::Connect { error } => {
                self.port.stats.connect_failures.add(1);
                self.unanswered(index);
                self.timeouts += u32::from(error.timed_out());
                if error.unanswered() {
                    self.port.hold_off(endpoint);
                }
                self.tried.add(endpoint);
                let problem = Problem::connect(endpoint, &error.in_words());
                tracing::debug!(service = %self.port.key(), problem.text, "trying the next endpoint");
                if self.timeouts >= limits::CONNECT_TIMEOUTS {
                    return Err(problem);
                }
                self.last = Some(problem);
                Ok(())
            }
            Failure::NotSent { error } => {
                self.not_sent += 1;
                if self.not_sent <= limits::UNSENT {
                    self.again = Some(index);
                    self.new_only = true;
                } else {
                    self.tried.add(endpoint);
                }
                self.last = Some(Problem::broken(endpoint, &error));
                Ok(())
            }
            Failure::Unprocessed { error } => {
                let problem = Problem::broken(endpoint, &error);
                self.tried.add(endpoint);
                self.once_more(problem, resend)?;
                self.only(index);
                Ok(())
            }
            Failure::Broken { error, reused } => {
                let problem = Problem::broken(endpoint, &error);
                let gone = error.unanswered();
                if gone {
                    self.port.hold_off(endpoint);
                }
                if self.is_stale(reused, resend) {
                    self.new_only = true;
                    if gone {
                        self.tried.add(endpoint);
                        self.last = Some(problem);
                        self.only(index);
                    } else {
                        self.again = Some(index);
                    }
                    return Ok(());
                }
                self.unanswered(index);
                if !self.idempotent {
                    self.count_retry(RetryResult::Failure);
                    return Err(problem);
                }
                self.tried.add(endpoint);
                self.once_more(problem, resend)?;
                self.only(index);
                Ok(())
            }
        }
    }

    /// Whether the kept connection that carried the request had most likely been idle for too long: it closed without a
    /// byte. Another try on a new connection is no more load on anybody and therefore free, but there is only one.
    fn is_stale(&mut self, reused: bool, resend: Resend) -> bool {
        let stale = reused
            && !self.stale
            && self.idempotent
            && self.view.retries > 0
            && resend == Resend::Possible;
        if stale {
            self.stale = true;
            self.count_retry(RetryResult::Failure);
            self.retrying = true;
        }
        stale
    }

    /// Allows another try if the request is at hand and number and budget allow one; else this is the problem.
    fn once_more(&mut self, problem: Problem, resend: Resend) -> Result<(), Problem> {
        self.count_retry(RetryResult::Failure);
        if resend == Resend::Impossible
            || self.retries >= self.view.retries
            || !self.port.withdraw(&self.view)
        {
            return Err(problem);
        }
        self.retries += 1;
        self.retrying = true;
        self.last = Some(problem);
        Ok(())
    }

    /// The same endpoint again where there is no other left to ask.
    fn only(&mut self, index: usize) {
        self.new_only = true;
        if self.tried.len() >= self.view.eligible.len() {
            self.again = Some(index);
        }
    }

    fn count_retry(&mut self, result: RetryResult) {
        if std::mem::take(&mut self.retrying) {
            self.port.stats.retry(result);
        }
    }

    fn nobody(&self) -> Problem {
        self.port.stats.unavailable.add(1);
        Problem::unavailable(&self.view.unavailable)
    }
}
