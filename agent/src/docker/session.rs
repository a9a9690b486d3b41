//! One connection to Docker, from subscription to loss.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bollard::models::ContainerInspectResponse;
use bollard::query_parameters::{EventsOptionsBuilder, InspectNetworkOptions};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use model::time::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use super::event::{self, Hint};
use super::inspect::{self, Inspected};
use super::network::Drivers;
use super::room::Room;
use super::{DockerOptions, DockerStatus, Message, REPLAY};
use crate::metrics::Metrics;
use crate::reconcile::lock;

/// Inspections at once at most.
const MAX_INSPECTIONS: usize = 16;
/// For one call; Docker under load takes seconds.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Until a container that could not be inspected is asked about again.
const RETRY: Duration = Duration::from_secs(1);
/// Containers in a row that share the network of the next.
const MAX_SHARING: usize = 8;
/// The oldest API that is spoken.
const OLDEST_API: (usize, usize) = (1, 41);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("docker at {socket} can't be reached")]
    Connect {
        socket: String,
        #[source]
        source: bollard::errors::Error,
    },
    #[error("docker.socket {0} is neither unix:// nor http://")]
    Socket(String),
    #[error("docker at {socket} speaks API {major}.{minor}, and 1.41 is the oldest that works")]
    TooOld {
        socket: String,
        major: usize,
        minor: usize,
    },
    #[error("docker can't {what}")]
    Call {
        what: &'static str,
        #[source]
        source: bollard::errors::Error,
    },
    #[error("docker did not answer within {CALL_TIMEOUT:?} when asked to {0}")]
    Timeout(&'static str),
    #[error("docker ended its events")]
    EventsEnded,
    #[error("docker's events broke off")]
    Events(#[source] bollard::errors::Error),
    #[error("nobody listens to docker's events any more")]
    Unheard,
}

pub(super) struct Ended {
    pub(super) error: SessionError,
    /// Whether it got as far as a listing.
    pub(super) listed: bool,
}

enum Answer {
    Listed(u64, Result<Vec<String>, SessionError>),
    Inspected(String, u64, Result<Option<Box<Inspected>>, SessionError>),
    Networks(Result<(), SessionError>),
}

type Work = FuturesUnordered<BoxFuture<'static, Answer>>;

pub(super) struct Session<'a> {
    options: &'a DockerOptions,
    out: &'a mpsc::Sender<Message>,
    status: &'a watch::Sender<DockerStatus>,
    metrics: &'a Metrics,
    room: &'a mut Room,
    drivers: Arc<Mutex<Drivers>>,
    listed: bool,
    /// Containers of which it was said that they can't be inspected.
    complained: HashSet<String>,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        options: &'a DockerOptions,
        out: &'a mpsc::Sender<Message>,
        status: &'a watch::Sender<DockerStatus>,
        metrics: &'a Metrics,
        room: &'a mut Room,
    ) -> Self {
        Session {
            options,
            out,
            status,
            metrics,
            room,
            drivers: Arc::default(),
            listed: false,
            complained: HashSet::new(),
        }
    }

    pub(super) async fn run(mut self) -> Ended {
        let error = match self.follow().await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        self.room.disconnected();
        Ended {
            error,
            listed: self.listed,
        }
    }

    async fn follow(&mut self) -> Result<std::convert::Infallible, SessionError> {
        let docker = connect(&self.options.socket).await?;
        let since = Timestamp::now().0 / 1000 - i64::try_from(REPLAY.as_secs()).unwrap_or(0);
        let filters = [("type", vec!["container", "network"])].into();
        let events = docker.events(Some(
            EventsOptionsBuilder::new()
                .since(&since.to_string())
                .filters(&filters)
                .build(),
        ));
        tokio::pin!(events);
        let mut work = Work::new();
        let mut relist = tokio::time::interval(self.options.relist.max(RETRY));
        relist.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut retry = tokio::time::interval(RETRY);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut inspections = 0usize;
        loop {
            while inspections < MAX_INSPECTIONS
                && let Some((id, tick)) = self.room.next()
            {
                inspections += 1;
                let (docker, drivers) = (docker.clone(), self.drivers.clone());
                work.push(
                    async move {
                        let found = look(&docker, &drivers, &id).await;
                        Answer::Inspected(id, tick, found)
                    }
                    .boxed(),
                );
            }
            let deadline = self.room.next_deadline();
            let messages = tokio::select! {
                event = events.next() => match event {
                    Some(Ok(event)) => self.hear(event, &docker, &work),
                    Some(Err(error)) => return Err(SessionError::Events(error)),
                    None => return Err(SessionError::EventsEnded),
                },
                Some(answer) = work.next() => {
                    if matches!(answer, Answer::Inspected(..)) {
                        inspections -= 1;
                    }
                    self.answer(answer)?
                }
                _ = relist.tick() => {
                    self.list(&docker, &work);
                    Vec::new()
                }
                _ = retry.tick(), if self.room.has_failed() => {
                    self.room.retry();
                    Vec::new()
                }
                () = sleep_until(deadline) => self.room.restore(Timestamp::now()),
            };
            for message in messages {
                if self.out.send(message).await.is_err() {
                    return Err(SessionError::Unheard);
                }
            }
        }
    }

    fn hear(
        &mut self,
        event: bollard::models::EventMessage,
        docker: &Docker,
        work: &Work,
    ) -> Vec<Message> {
        let Some(hint) = event::read(event) else {
            return Vec::new();
        };
        let kind = match &hint {
            Hint::Signalled { .. } => "terminating",
            Hint::Ended { .. } => "gone",
            Hint::OutOfMemory { .. } => "oom",
            Hint::Changed { .. } | Hint::Networks => "changed",
        };
        self.metrics.docker_events.with_label_values(&[kind]).inc();
        if hint == Hint::Networks {
            let (docker, drivers) = (docker.clone(), self.drivers.clone());
            work.push(async move { Answer::Networks(networks(&docker, &drivers).await) }.boxed());
        }
        self.room.hear(hint, Timestamp::now())
    }

    fn list(&mut self, docker: &Docker, work: &Work) {
        let tick = self.room.list_begins();
        let (docker, drivers) = (docker.clone(), self.drivers.clone());
        work.push(
            async move {
                let listed = async {
                    networks(&docker, &drivers).await?;
                    let all = call("list containers", docker.list_containers(None)).await?;
                    Ok(all.into_iter().filter_map(|c| c.id).collect())
                };
                Answer::Listed(tick, listed.await)
            }
            .boxed(),
        );
    }

    fn answer(&mut self, answer: Answer) -> Result<Vec<Message>, SessionError> {
        match answer {
            Answer::Listed(tick, ids) => {
                let ids = ids?;
                if !self.listed {
                    self.listed = true;
                    tracing::info!(socket = %self.options.socket, containers = ids.len(), "docker is followed");
                    self.metrics.docker_connected.set(1);
                    self.status.send_replace(DockerStatus::Connected {
                        since: Timestamp::now(),
                    });
                }
                Ok(self.room.listed(ids, tick))
            }
            Answer::Inspected(id, tick, Ok(found)) => {
                self.complained.remove(&id);
                Ok(self
                    .room
                    .inspected(&id, tick, found.map(|i| *i), Timestamp::now()))
            }
            Answer::Inspected(id, _, Err(error)) => {
                let reason = registry::follow::chain(&error);
                let short = crate::local::short(&id);
                // It is asked about every second.
                if self.complained.insert(id.clone()) {
                    tracing::warn!(id = short, %reason, "container can't be inspected; what is known of it stays");
                } else {
                    tracing::debug!(id = short, %reason, "container still can't be inspected");
                }
                Ok(self.room.not_inspected(&id))
            }
            Answer::Networks(result) => result.map(|()| Vec::new()),
        }
    }
}

async fn connect(socket: &str) -> Result<Docker, SessionError> {
    let schemes = ["unix://", "/", "http://", "tcp://"];
    if !schemes.iter().any(|scheme| socket.starts_with(scheme)) {
        return Err(SessionError::Socket(socket.to_owned()));
    }
    let docker = dial(socket, CALL_TIMEOUT)
        .await
        .map_err(|source| SessionError::Connect {
            socket: socket.to_owned(),
            source,
        })?;
    let version = docker.client_version();
    let (major, minor) = (version.major_version, version.minor_version);
    if (major, minor) < OLDEST_API {
        return Err(SessionError::TooOld {
            socket: socket.to_owned(),
            major,
            minor,
        });
    }
    Ok(docker)
}

/// A client whose calls end after `timeout`, in the newest version of the API that both sides speak.
pub(crate) async fn dial(
    socket: &str,
    timeout: Duration,
) -> Result<Docker, bollard::errors::Error> {
    let seconds = timeout.as_secs();
    let docker = if socket.starts_with("unix://") || socket.starts_with('/') {
        Docker::connect_with_unix(socket, seconds, API_DEFAULT_VERSION)?
    } else {
        Docker::connect_with_http(socket, seconds, API_DEFAULT_VERSION)?
    };
    docker.negotiate_version().await
}

async fn call<T>(
    what: &'static str,
    answer: impl Future<Output = Result<T, bollard::errors::Error>>,
) -> Result<T, SessionError> {
    match tokio::time::timeout(CALL_TIMEOUT, answer).await {
        Ok(answer) => answer.map_err(|source| SessionError::Call { what, source }),
        Err(_) => Err(SessionError::Timeout(what)),
    }
}

async fn networks(docker: &Docker, drivers: &Mutex<Drivers>) -> Result<(), SessionError> {
    let all = call("list networks", docker.list_networks(None)).await?;
    let fresh = all
        .into_iter()
        .flat_map(|network| {
            let driver = network.driver.unwrap_or_default();
            let keys = network.id.into_iter().chain(network.name);
            keys.map(move |key| (key, driver.clone()))
        })
        .collect();
    *lock(drivers) = fresh;
    Ok(())
}

/// The driver of a network that is younger than the last listing, or that the listing calls otherwise: Podman lists its
/// network `podman` as `bridge`.
async fn driver_of(docker: &Docker, key: &str) -> Result<Option<String>, SessionError> {
    let network = found(
        "inspect a network",
        docker.inspect_network(key, None::<InspectNetworkOptions>),
    );
    Ok(network.await?.map(|n| n.driver.unwrap_or_default()))
}

/// What runs under an id; `None` when nothing does.
async fn look(
    docker: &Docker,
    drivers: &Mutex<Drivers>,
    id: &str,
) -> Result<Option<Box<Inspected>>, SessionError> {
    let Some(container) = inspect_one(docker, id).await? else {
        return Ok(None);
    };
    let other = network_owner(docker, &container).await?;
    let unknown: Vec<String> = {
        let drivers = lock(drivers);
        [Some(&container), other.as_ref()]
            .into_iter()
            .flatten()
            .flat_map(inspect::network_keys)
            .filter(|key| !drivers.contains_key(*key))
            .map(str::to_owned)
            .collect()
    };
    for key in unknown {
        if let Some(driver) = driver_of(docker, &key).await? {
            lock(drivers).insert(key, driver);
        }
    }
    let drivers = lock(drivers);
    let found = inspect::read(&container, other.as_ref(), &drivers, Timestamp::now());
    Ok(found.map(Box::new))
}

/// The container whose network another one shares, past those in between that share it too.
async fn network_owner(
    docker: &Docker,
    container: &ContainerInspectResponse,
) -> Result<Option<ContainerInspectResponse>, SessionError> {
    let mut owner = None;
    for _ in 0..MAX_SHARING {
        let Some(next) = inspect::joined(owner.as_ref().unwrap_or(container)) else {
            break;
        };
        owner = inspect_one(docker, next).await?;
        if owner.is_none() {
            break;
        }
    }
    Ok(owner)
}

async fn inspect_one(
    docker: &Docker,
    id: &str,
) -> Result<Option<ContainerInspectResponse>, SessionError> {
    found("inspect a container", docker.inspect_container(id, None)).await
}

/// What was asked about; `None` when it doesn't exist.
async fn found<T>(
    what: &'static str,
    answer: impl Future<Output = Result<T, bollard::errors::Error>>,
) -> Result<Option<T>, SessionError> {
    match call(what, answer).await {
        Ok(it) => Ok(Some(it)),
        Err(SessionError::Call {
            source:
                bollard::errors::Error::DockerResponseServerError {
                    status_code: 404, ..
                },
            ..
        }) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn sleep_until(deadline: Option<Timestamp>) {
    match deadline {
        Some(at) => {
            let left = at.0.saturating_sub(Timestamp::now().0).max(1);
            tokio::time::sleep(Duration::from_millis(u64::try_from(left).unwrap_or(1))).await;
        }
        None => std::future::pending().await,
    }
}
