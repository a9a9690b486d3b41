//! Threads that answer datagrams, each with a socket of its own: the kernel spreads clients over them, and no query is
//! handed from one to another.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tracing::{debug, error};

use crate::core::{Core, Name, Outcome, Read};
use crate::error::Transport;
use crate::fast::MAX_NAME;
use crate::handler::{Client, Pending};
use crate::udp::{BATCH, Batch, Datagram, Packets, Replies, Socket};

/// After an error of the socket itself, or a defect, so that it can't make a busy loop.
const BACK_OFF: Duration = Duration::from_millis(50);

/// A query that waits for an upstream, and where its answer goes.
pub(crate) struct Forwarded {
    pub pending: Box<Pending>,
    pub socket: Arc<Socket>,
    pub datagram: Datagram,
}

/// Running threads; they end when this is dropped.
pub(crate) struct Workers {
    sockets: Vec<Arc<Socket>>,
    stop: Arc<AtomicBool>,
}

impl Workers {
    /// Starts a thread for each socket.
    pub(crate) fn start(
        sockets: Vec<Arc<Socket>>,
        core: impl Fn() -> Core + Clone + Send + 'static,
        forward: &mpsc::UnboundedSender<Forwarded>,
    ) -> io::Result<Self> {
        let workers = Workers {
            sockets,
            stop: Arc::default(),
        };
        for (index, socket) in workers.sockets.iter().enumerate() {
            let worker = Worker {
                socket: socket.clone(),
                stop: workers.stop.clone(),
                forward: forward.clone(),
            };
            let core = core.clone();
            thread::Builder::new()
                .name(format!("dns-{index}"))
                .spawn(move || worker.run(core))?;
        }
        Ok(workers)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for socket in &self.sockets {
            socket.close();
        }
    }
}

struct Worker {
    socket: Arc<Socket>,
    stop: Arc<AtomicBool>,
    forward: mpsc::UnboundedSender<Forwarded>,
}

impl Worker {
    /// Serves, and anew after a panic: a defect costs the packets that were with it, and not the host its names.
    fn run(&self, core: impl Fn() -> Core) {
        let mut core = core();
        let mut batch = Batch::new();
        let mut names: Box<[Name]> = vec![[0; MAX_NAME]; BATCH].into();
        while !self.stopped() {
            let serve = || self.serve(&mut core, &mut batch, &mut names);
            let served = catch_unwind(AssertUnwindSafe(serve));
            if served.is_err() {
                let address = self.socket.local();
                error!(%address, transport = %Transport::Udp, "dns listener failed and goes on");
                thread::sleep(BACK_OFF);
            }
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn serve(&self, core: &mut Core, batch: &mut Batch, names: &mut [Name]) {
        while !self.stopped() {
            let count = match batch.receive(&self.socket) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    debug!(%error, "dns datagram not received");
                    thread::sleep(BACK_OFF);
                    continue;
                }
            };
            let received = Instant::now();
            let mut answered = 0;
            let (packets, mut replies) = batch.exchange();
            let mut reads = [None; BATCH];
            for ((index, name), read) in names.iter_mut().enumerate().zip(&mut reads).take(count) {
                *read = core.read(packets.bytes(index), name);
            }
            // One packet alone waits for its answer just as well when it is made.
            if count > 1 {
                core.fetch(&reads[..count]);
            }
            for (index, read) in reads[..count].iter().enumerate() {
                let done = self.one(core, &packets, &mut replies, index, read.as_ref());
                answered += u64::from(done);
            }
            batch.send(&self.socket);
            if answered > 0 {
                core.counts().took(answered, received.elapsed());
            }
        }
    }

    /// Whether it was answered by this thread alone.
    fn one(
        &self,
        core: &mut Core,
        packets: &Packets<'_>,
        replies: &mut Replies<'_>,
        index: usize,
        read: Option<&Read<'_>>,
    ) -> bool {
        let Some(datagram) = packets.datagram(index, &self.socket) else {
            return false;
        };
        let client = Client {
            address: datagram.from,
            asked: datagram.to,
            transport: Transport::Udp,
        };
        let out = replies.room(index);
        match core.answer_read(packets.bytes(index), read, client, out) {
            // Nobody gets a zone by datagrams.
            Outcome::Silence | Outcome::Transfer(_) => {}
            Outcome::Written(length) => {
                replies.ready(index, length);
                return true;
            }
            Outcome::Reply(bytes) => {
                let Some(out) = out.get_mut(..bytes.len()) else {
                    return false;
                };
                out.copy_from_slice(&bytes);
                replies.ready(index, bytes.len());
            }
            Outcome::Forward(pending) => {
                // Nobody takes it any more when the server ends.
                let _ = self.forward.send(Forwarded {
                    pending,
                    socket: self.socket.clone(),
                    datagram,
                });
            }
        }
        false
    }
}
