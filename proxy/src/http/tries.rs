//! The tries of a request: which endpoint, whether on a kept connection, and whether once more after a failure.
//!
//! Sent again is only what provably was not processed, or is idempotent, and has no body; within the port's number of
//! retries and its budget.

use std::rc::Rc;

use http::{HeaderMap, Method, Request, Uri, Version};
use model::service::UpstreamProtocol;

use super::attempt::{Answer, Failure, Unsent, attempt, in_words, went_unanswered};
use super::body::RequestBody;
use super::pool::Need;
use super::reply::Problem;
use crate::metrics::RetryResult;
use crate::options::limits;
use crate::pick::{self, Tried, hold_off};
use crate::target::{InFlight, Port, View};

/// The tries of one request.
pub(super) struct Tries {
    unsent: Unsent,
    port: Rc<Port>,
    view: View,
    need: Need,
    /// Kept to make the request again; none for what must not be or can't.
    head: Option<Head>,
    idempotent: bool,
    tried: Tried,
    timeouts: u32,
    retries: u32,
    not_sent: u32,
    retrying: bool,
    stale: bool,
    /// What went wrong last.
    last: Option<Problem>,
}

/// A request without a body. Cloning it costs two allocations and a reference count per field.
#[derive(Clone)]
struct Head {
    method: Method,
    uri: Uri,
    version: Version,
    headers: HeaderMap,
}

impl Head {
    fn of(request: &Request<RequestBody>) -> Self {
        Head {
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            headers: request.headers().clone(),
        }
    }

    fn request(self) -> Request<RequestBody> {
        let mut request = Request::new(RequestBody::Empty);
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.version_mut() = self.version;
        *request.headers_mut() = self.headers;
        request
    }
}

impl Tries {
    pub(super) fn new(
        port: Rc<Port>,
        view: View,
        first: bool,
        request: Request<RequestBody>,
    ) -> Self {
        let repeatable = view.retries > 0 && matches!(request.body(), RequestBody::Empty);
        let idempotent = request.method().is_idempotent();
        // An endpoint that speaks HTTP/2 can say that it did not process a request, whatever its method.
        let keep = repeatable && (idempotent || view.upstream == UpstreamProtocol::H2c);
        let need = match (repeatable && idempotent, first) {
            (true, _) => Need::Any,
            (false, true) => Need::New,
            (false, false) => Need::Sure,
        };
        let head = keep.then(|| Head::of(&request));
        Tries {
            unsent: Some(request),
            port,
            view,
            need,
            head,
            idempotent,
            tried: Tried::default(),
            timeouts: 0,
            retries: 0,
            not_sent: 0,
            retrying: false,
            stale: false,
            last: None,
        }
    }

    /// Tries endpoints until one answers. One that can't be connected to got nothing: the next is asked, each once.
    ///
    /// # Errors
    /// What went wrong with the last one tried, or why there is none to try.
    pub(super) async fn run(&mut self) -> Result<(Answer, InFlight), Problem> {
        // Cloned once: the tries below change what the view is kept beside.
        let (port, view) = (Rc::clone(&self.port), self.view.clone());
        let mut again = None;
        loop {
            let picked = again.take().or_else(|| pick::pick(&view, &self.tried));
            let Some(index) = picked else {
                return Err(self.last.take().unwrap_or_else(|| self.nobody()));
            };
            let in_flight = InFlight::new(&view, index);
            let endpoint = &view.endpoints[index];
            let tried = attempt(&port, &view, index, self.need, &mut self.unsent).await;
            let failure = match tried {
                Ok(answer) => {
                    hold_off::end(endpoint);
                    self.count_retry(RetryResult::Success);
                    return Ok((answer, in_flight));
                }
                Err(failure) => failure,
            };
            drop(in_flight);
            match failure {
                Failure::Connect { error } => {
                    self.port.stats.connect_failures.add(1);
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
                }
                Failure::NotSent { error } => {
                    self.not_sent += 1;
                    if self.not_sent <= limits::UNSENT {
                        again = Some(index);
                        self.need = Need::New;
                    } else {
                        self.tried.add(endpoint);
                    }
                    self.last = Some(Problem::broken(endpoint, &in_words(&error)));
                }
                Failure::Unprocessed { error } => {
                    let problem = Problem::broken(endpoint, &in_words(&error));
                    self.tried.add(endpoint);
                    self.once_more(problem)?;
                    again = self.only(index);
                }
                Failure::Broken { error, reused } => {
                    if error.is_user() {
                        return Err(Problem::request_body(&in_words(&error)));
                    }
                    let problem = Problem::broken(endpoint, &in_words(&error));
                    let gone = went_unanswered(&error);
                    if gone {
                        self.port.hold_off(endpoint);
                    }
                    match self.stale_head(reused) {
                        Some(head) => {
                            self.need = Need::New;
                            self.unsent = Some(head.request());
                            if gone {
                                self.tried.add(endpoint);
                                self.last = Some(problem);
                                again = self.only(index);
                            } else {
                                again = Some(index);
                            }
                        }
                        None if self.idempotent => {
                            self.tried.add(endpoint);
                            self.once_more(problem)?;
                            again = self.only(index);
                        }
                        None => {
                            self.count_retry(RetryResult::Failure);
                            return Err(problem);
                        }
                    }
                }
            }
        }
    }

    /// The request for another try on a new connection to the same endpoint, when the kept one that carried it closed
    /// without a byte: most likely it had been idle for too long. Such a try is no more load on anybody and therefore
    /// free, but there is only one.
    fn stale_head(&mut self, reused: bool) -> Option<Head> {
        if !reused || self.stale || !self.idempotent {
            return None;
        }
        let head = self.head.clone()?;
        self.stale = true;
        self.count_retry(RetryResult::Failure);
        self.retrying = true;
        Some(head)
    }

    /// Makes the request again for another try, if their number and the budget allow one; else it is the problem.
    fn once_more(&mut self, problem: Problem) -> Result<(), Problem> {
        self.count_retry(RetryResult::Failure);
        match &self.head {
            Some(head) if self.retries < self.view.retries && self.port.withdraw(&self.view) => {
                self.retries += 1;
                self.retrying = true;
                self.last = Some(problem);
                self.unsent = Some(head.clone().request());
                Ok(())
            }
            _ => Err(problem),
        }
    }

    /// The same endpoint again where there is no other left to ask.
    fn only(&mut self, index: usize) -> Option<usize> {
        self.need = Need::New;
        (self.tried.len() >= self.view.eligible.len()).then_some(index)
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
