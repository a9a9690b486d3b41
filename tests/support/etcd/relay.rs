//! A relay in front of a TCP port, which can go silent: bytes are held, and connections stay open, as where a network is
//! cut. Mended, what was held goes on its way, as TCP would send it again.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// The header by which etcd's members tell each other who they are.
const FROM: &str = "X-Server-From: ";

pub(super) struct Relay {
    port: u16,
    state: Arc<State>,
}

struct State {
    to: SocketAddr,
    ended: AtomicBool,
    cut: Mutex<Cut>,
}

#[derive(Default)]
struct Cut {
    all: bool,
    /// Member ids whose connections are silent.
    from: BTreeSet<String>,
}

/// Who makes a connection, once that is known.
type Sender = Arc<Mutex<Option<String>>>;

impl Relay {
    /// A relay to a port of 127.0.0.1.
    pub(super) fn start(to: u16) -> Relay {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let state = Arc::new(State {
            to: SocketAddr::from((Ipv4Addr::LOCALHOST, to)),
            ended: AtomicBool::new(false),
            cut: Mutex::default(),
        });
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if shared.ended.load(Ordering::Relaxed) {
                    return;
                }
                let state = shared.clone();
                thread::spawn(move || state.serve(stream));
            }
        });
        Relay { port, state }
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Lets nothing through.
    pub(super) fn cut(&self) {
        self.state.cut(|cut| cut.all = true);
    }

    /// Lets nothing of this member through.
    pub(super) fn cut_from(&self, member: &str) {
        self.state.cut(|cut| _ = cut.from.insert(member.to_owned()));
    }

    pub(super) fn mend(&self) {
        self.state.cut(|cut| *cut = Cut::default());
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::Relaxed);
        // Wakes the listener.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

impl State {
    fn cut(&self, change: impl FnOnce(&mut Cut)) {
        change(&mut self.cut.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn is_cut(&self, sender: &Sender) -> bool {
        let cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = sender.lock().unwrap_or_else(PoisonError::into_inner);
        cut.all || sender.as_ref().is_some_and(|id| cut.from.contains(id))
    }

    /// Waits while the relay is cut; whether it goes on.
    fn goes_on(&self, sender: &Sender) -> bool {
        while self.is_cut(sender) {
            if self.ended.load(Ordering::Relaxed) {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        true
    }

    fn serve(self: Arc<Self>, near: TcpStream) {
        let sender = Sender::default();
        if !self.goes_on(&sender) {
            return;
        }
        let Ok(far) = TcpStream::connect(self.to) else {
            return;
        };
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        let (Ok(near_again), Ok(far_again)) = (near.try_clone(), far.try_clone()) else {
            return;
        };
        let (state, same) = (self.clone(), sender.clone());
        thread::spawn(move || state.pump(far_again, near_again, &same, false));
        self.pump(near, far, &sender, true);
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream, sender: &Sender, asks: bool) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if asks {
                recognise(&buffer[..count], sender);
            }
            if !self.goes_on(sender) || to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    }
}

fn recognise(bytes: &[u8], sender: &Sender) {
    let mut sender = sender.lock().unwrap_or_else(PoisonError::into_inner);
    if sender.is_none() {
        let text = String::from_utf8_lossy(bytes);
        let id = text
            .split_once(FROM)
            .and_then(|(_, rest)| rest.lines().next());
        *sender = id.map(str::to_owned);
    }
}
