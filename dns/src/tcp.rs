//! Connections: queries one after the other, answered as soon as each can be (RFC 7766).

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::core::{Core, Outcome};
use crate::edns::padding;
use crate::error::Transport;
use crate::handler::{Client, Handler};

/// Connections of one listener at a time; one more is closed at once.
pub const MAX_CONNECTIONS: usize = 1_000;

/// Queries of one connection whose answers are not sent yet; the next ones wait in the socket.
pub const MAX_PIPELINED: usize = 64;

/// How long a client may take to send a query, to take a response, or to stay silent (RFC 7766, 6.2.3).
const IDLE: Duration = Duration::from_secs(10);

/// After an error of the socket itself, such as a lack of descriptors, so that it can't make a busy loop.
const BACK_OFF: Duration = Duration::from_millis(50);

/// What connections are answered with.
#[derive(Clone)]
pub(crate) struct Answering {
    pub handler: Arc<Handler>,
    /// Held for one answer at a time.
    pub desk: Arc<Mutex<Desk>>,
    pub shutdown: CancellationToken,
}

/// A core, and room for the longest answer.
pub(crate) struct Desk {
    core: Core,
    out: Box<[u8]>,
}

impl Desk {
    pub(crate) fn new(core: Core) -> Self {
        Desk {
            core,
            out: vec![0; usize::from(u16::MAX)].into(),
        }
    }

    /// The outcome, with what was written as a response that stands for itself.
    fn answer(&mut self, packet: &[u8], client: Client) -> Outcome {
        let started = Instant::now();
        match self.core.answer(packet, client, &mut self.out) {
            Outcome::Written(length) => {
                self.core.counts().took(1, started.elapsed());
                Outcome::Reply(self.out[..length].to_vec())
            }
            other => other,
        }
    }
}

/// Runs a loop, and anew if it panics: a defect costs the connection that found it, and not the host its names.
pub(crate) async fn restarted<F>(address: SocketAddr, transport: Transport, serve: impl Fn() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    while let Err(error) = tokio::spawn(serve()).await {
        if !error.is_panic() {
            return;
        }
        error!(%address, %transport, %error, "dns listener failed and is started again");
        sleep(BACK_OFF).await;
    }
}

/// How a connection that was accepted becomes one to read from: at once, or after a TLS handshake.
pub(crate) trait Open: Clone + Send + Sync + 'static {
    /// What is read and written.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send;
    /// As in logs.
    const TRANSPORT: Transport;
    /// Does what has to be done first.
    fn open(
        &self,
        stream: tokio::net::TcpStream,
    ) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

/// Nothing has to be done first.
#[derive(Clone)]
pub(crate) struct Plain;

impl Open for Plain {
    type Stream = tokio::net::TcpStream;
    const TRANSPORT: Transport = Transport::Tcp;

    async fn open(&self, stream: tokio::net::TcpStream) -> io::Result<Self::Stream> {
        Ok(stream)
    }
}

/// Accepts connections until shutdown.
pub(crate) async fn serve<O: Open>(listener: Arc<TcpListener>, open: O, answering: Answering) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = answering.shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "dns connection not accepted");
                sleep(BACK_OFF).await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            debug!(client = %peer, limit = MAX_CONNECTIONS, "dns connection closed: too many");
            continue;
        };
        let (open, answering) = (open.clone(), answering.clone());
        tokio::spawn(async move {
            let shutdown = answering.shutdown.clone();
            let serve = async {
                stream.set_nodelay(true)?;
                let asked = stream.local_addr()?.ip();
                let stream = timeout(IDLE, open.open(stream)).await??;
                connection(stream, peer, asked, O::TRANSPORT, &answering).await
            };
            if let Some(Err(error)) = shutdown.run_until_cancelled(serve).await {
                debug!(client = %peer, %error, "dns connection ended");
            }
            drop(slot);
        });
    }
}

/// Answers queries until the client closes, is silent for too long, or sends what is no query; what is still to be
/// answered then is answered first.
async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: SocketAddr,
    asked: IpAddr,
    transport: Transport,
    answering: &Answering,
) -> io::Result<()> {
    let client = Client {
        address: peer,
        asked,
        transport,
    };
    let (reading, mut writing) = tokio::io::split(stream);
    let (responses, mut ready) = mpsc::channel::<Vec<u8>>(MAX_PIPELINED);
    let write = async {
        let mut framed = Vec::new();
        while let Some(response) = ready.recv().await {
            framed.clear();
            frame(&mut framed, &response);
            while let Ok(response) = ready.try_recv() {
                frame(&mut framed, &response);
            }
            timeout(IDLE, writing.write_all(&framed)).await??;
            timeout(IDLE, writing.flush()).await??;
        }
        let _ = timeout(IDLE, writing.shutdown()).await;
        Ok(())
    };
    let read = questions(reading, client, responses, answering);
    // Whoever does not take answers is not read from any more.
    tokio::try_join!(read, write).map(|_| ())
}

fn frame(framed: &mut Vec<u8>, response: &[u8]) {
    let length = u16::try_from(response.len()).unwrap_or(u16::MAX);
    framed.extend(length.to_be_bytes());
    framed.extend_from_slice(response);
}

async fn questions(
    reading: impl AsyncRead + Unpin,
    client: Client,
    responses: mpsc::Sender<Vec<u8>>,
    answering: &Answering,
) -> io::Result<()> {
    let mut reading = BufReader::new(reading);
    let pipelined = Arc::new(Semaphore::new(MAX_PIPELINED));
    let mut packet = Vec::new();
    loop {
        let there = timeout(IDLE, read(&mut reading, &mut packet)).await;
        if !there.unwrap_or(Ok(false))? {
            return Ok(());
        }
        let padded = client.transport == Transport::Tls && padding::is_wanted(&packet);
        let outcome = {
            let desk = &answering.desk;
            let mut desk = desk.lock().unwrap_or_else(PoisonError::into_inner);
            desk.answer(&packet, client)
        };
        match outcome {
            Outcome::Silence | Outcome::Written(_) => return Ok(()),
            Outcome::Reply(mut bytes) => {
                if padded {
                    padding::pad(&mut bytes);
                }
                if responses.send(bytes).await.is_err() {
                    return Ok(());
                }
            }
            Outcome::Transfer(mut transfer) => {
                let (responses, handler) = (responses.clone(), answering.handler.clone());
                let shutdown = answering.shutdown.clone();
                tokio::spawn(async move {
                    let send = async {
                        while let Some(mut bytes) = transfer.next(&handler) {
                            if padded {
                                padding::pad(&mut bytes);
                            }
                            // The client may be gone.
                            if responses.send(bytes).await.is_err() {
                                return;
                            }
                            // Making a message takes longer than handing it on.
                            tokio::task::yield_now().await;
                        }
                    };
                    shutdown.run_until_cancelled(send).await;
                });
            }
            Outcome::Forward(pending) => {
                let Ok(slot) = pipelined.clone().acquire_owned().await else {
                    return Ok(());
                };
                let (responses, handler) = (responses.clone(), answering.handler.clone());
                let shutdown = answering.shutdown.clone();
                tokio::spawn(async move {
                    let forward = handler.forward(pending);
                    if let Some(mut bytes) = shutdown.run_until_cancelled(forward).await {
                        if padded {
                            padding::pad(&mut bytes);
                        }
                        // The client may be gone.
                        let _ = responses.send(bytes).await;
                    }
                    drop(slot);
                });
            }
        }
    }
}

/// Reads one message; false when the client has closed. The buffer grows with what came, not with what was announced.
async fn read(reading: &mut (impl AsyncRead + Unpin), packet: &mut Vec<u8>) -> io::Result<bool> {
    packet.clear();
    let mut length = [0; 2];
    if reading.read(&mut length[..1]).await? == 0 {
        return Ok(false);
    }
    reading.read_exact(&mut length[1..]).await?;
    let length = u16::from_be_bytes(length);
    let got = reading.take(length.into()).read_to_end(packet).await?;
    if got < length.into() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(true)
}
