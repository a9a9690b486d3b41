//! DNS as a container has it: a query sent from inside the network namespace of one that runs.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use bollard::query_parameters::{InspectContainerOptions, ListContainersOptions};

use super::{Finding, docker};
use crate::app::{dns_addresses, is_root};
use crate::config::Config;

const ABOUT: &str = "dns";
const PATIENCE: Duration = Duration::from_secs(2);

pub async fn look(config: &Config, running: bool) -> Finding {
    let mesh = config.mesh();
    let Some(address) = dns_addresses(config, &mesh).first().copied() else {
        return Finding::skipped(ABOUT, "dns.listen is empty");
    };
    if !running {
        return Finding::skipped(ABOUT, "not asked: no node runs here");
    }
    if address.port() == 0 {
        return Finding::skipped(
            ABOUT,
            format!("{address} names no port: the node's log does"),
        );
    }
    let zone = mesh.zone.clone();
    if let Err(why) = ask(address, &zone) {
        return Finding::fail(
            ABOUT,
            format!("no answer from {address} on this host: {why}"),
            "see heddle's log and /readyz; a firewall may drop port 53 of the VIP range",
        );
    }
    let Some(url) = &config.docker else {
        return Finding::ok(ABOUT, format!("{address} answers on this host"));
    };
    let here = format!("{address} answers on this host");
    if address.ip().is_loopback() {
        return Finding::warn(
            ABOUT,
            format!("{here}, and only here: it is a loopback address"),
            "containers can't reach it: run heddle as root, or set dns.listen to an address of this host",
        );
    }
    if !is_root() {
        return Finding::skipped(ABOUT, format!("{here}; asking from a container takes root"));
    }
    match a_container(url).await {
        Ok(None) => Finding::skipped(ABOUT, format!("{here}; no container runs to ask from")),
        Err(error) => Finding::skipped(ABOUT, format!("{here}; no container to ask from: {error}")),
        Ok(Some((name, pid))) => {
            let asked = tokio::task::spawn_blocking(move || from_inside(pid, address, &zone)).await;
            match asked.unwrap_or_else(|e| Err(io::Error::other(e))) {
                Ok(()) => Finding::ok(ABOUT, format!("{here} and from container {name}")),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Finding::skipped(
                    ABOUT,
                    format!("{here}; the processes of Docker's containers can't be seen from here"),
                ),
                Err(error) => Finding::fail(
                    ABOUT,
                    format!("{here}, but not from container {name}: {error}"),
                    "a firewall on this host drops what its bridges send to the VIP range (iptables -L INPUT, nft list \
                     ruleset), or the container's network is internal",
                ),
            }
        }
    }
}

/// A running container that has a network of its own: its name and the id of its first process.
async fn a_container(url: &str) -> Result<Option<(String, i64)>, bollard::errors::Error> {
    let docker = docker::connect(url).await?;
    for container in docker
        .list_containers(None::<ListContainersOptions>)
        .await?
    {
        let Some(id) = container.id else { continue };
        let own = docker
            .inspect_container(&id, None::<InspectContainerOptions>)
            .await?;
        let mode = own.host_config.and_then(|h| h.network_mode);
        let mode = mode.unwrap_or_default();
        let pid = own.state.and_then(|s| s.pid).filter(|pid| *pid > 0);
        if mode != "host"
            && mode != "none"
            && let Some(pid) = pid
        {
            let name = own.name.unwrap_or(id);
            return Ok(Some((name.trim_start_matches('/').to_owned(), pid)));
        }
    }
    Ok(None)
}

/// Asks from within the network namespace of a process, on a thread that ends with it.
fn from_inside(pid: i64, address: SocketAddr, zone: &str) -> io::Result<()> {
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    let zone = zone.to_owned();
    let asking = std::thread::spawn(move || {
        // SAFETY: setns takes a descriptor that is open, and moves this thread alone.
        if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
            return Err(io::Error::last_os_error());
        }
        ask(address, &zone)
    });
    asking
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread that asks ended")))
}

/// One query over UDP (RFC 1035, section 4.1): any answer to it will do.
fn ask(address: SocketAddr, zone: &str) -> io::Result<()> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0u16; 8], 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(address)?;
    let query = query(0x6864, &format!("dns-version.{zone}"));
    let mut answer = [0; 1500];
    // A datagram may be lost.
    for _ in 0..3 {
        socket.send(&query)?;
        match socket.recv(&mut answer) {
            Ok(n) if n >= 12 && answer[..2] == query[..2] => return Ok(()),
            Ok(_) => {}
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "no answer"))
}

fn query(id: u16, name: &str) -> Vec<u8> {
    const TXT: u16 = 16;
    const IN: u16 = 1;
    let mut all = id.to_be_bytes().to_vec();
    // Recursion desired, one question.
    all.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.').filter(|l| !l.is_empty()) {
        let label = &label.as_bytes()[..label.len().min(63)];
        all.push(u8::try_from(label.len()).unwrap_or(63));
        all.extend(label);
    }
    all.push(0);
    all.extend(TXT.to_be_bytes());
    all.extend(IN.to_be_bytes());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_one_question() {
        assert_eq!(
            query(7, "a.bc"),
            [
                0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 2, b'b', b'c', 0, 0, 16, 0, 1
            ]
        );
    }
}
