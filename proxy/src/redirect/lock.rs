//! One process per table: the name of an abstract Unix socket is held as long as the redirect is.
//!
//! Such names belong to the network namespace, as the table does, and the kernel frees them with the
//! process, however it ends. So a start after a crash is never refused, and a second process always.

use std::io;
use std::os::fd::AsRawFd;

use socket2::{Domain, SockAddr, Socket, Type};

use super::RedirectError;

/// Processes that can learn who holds the name before one that asks learns only that it is taken.
const BACKLOG: i32 = 128;

/// The right to the table's name in this network namespace, until drop.
#[derive(Debug)]
pub(super) struct Lock {
    _socket: Socket,
}

impl Lock {
    pub(super) fn take(table: &str) -> Result<Self, RedirectError> {
        let failed = |source| RedirectError::Lock {
            table: table.to_owned(),
            source,
        };
        let name = SockAddr::unix(format!("\0heddle-nft-{table}")).map_err(failed)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM.cloexec(), None).map_err(failed)?;
        match socket.bind(&name) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                return Err(RedirectError::InUse {
                    table: table.to_owned(),
                    holder: holder(&name),
                });
            }
            Err(error) => return Err(failed(error)),
        }
        // Nobody is ever accepted: listening only lets others ask who holds the name.
        socket.listen(BACKLOG).map_err(failed)?;
        Ok(Self { _socket: socket })
    }
}

/// The process that holds the name; `None` when it is in another process namespace, or many asked before.
fn holder(name: &SockAddr) -> Option<i32> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None).ok()?;
    socket.connect(name).ok()?;
    let mut peer = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: both pointers outlive the call, and the length is that of the structure.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    (result == 0 && peer.pid > 0).then_some(peer.pid)
}
