//! One query to one upstream.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::Asked;
use super::wire::{self, Response};
use crate::error::Transport;
use crate::response::MAX_DATAGRAM;

/// Asks by the client's own transport; a truncated datagram makes us ask again by TCP.
pub(super) async fn exchange(
    server: SocketAddr,
    asked: &Asked,
    transport: Transport,
) -> io::Result<Response> {
    if transport == Transport::Tcp {
        return by_tcp(server, asked).await;
    }
    let response = by_udp(server, asked).await?;
    if !response.truncated() {
        return Ok(response);
    }
    // What was left out is still said to be: the client may have more luck by TCP than we.
    Ok(by_tcp(server, asked).await.unwrap_or(response))
}

/// A socket for each query: its random port and the random id are what a forger has to guess, and being connected it
/// takes datagrams from the upstream only.
async fn by_udp(server: SocketAddr, asked: &Asked) -> io::Result<Response> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&asked.bytes).await?;
    let mut buffer = [0; MAX_DATAGRAM as usize];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if wire::is_bare_error(&buffer[..length], asked) {
            return Err(not_understood());
        }
        if let Some(response) = Response::read(buffer[..length].to_vec(), asked) {
            return Ok(response);
        }
    }
}

async fn by_tcp(server: SocketAddr, asked: &Asked) -> io::Result<Response> {
    let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let length = u16::try_from(asked.bytes.len()).map_err(too_long)?;
    let mut stream = TcpStream::connect(server).await?;
    // In one segment: some servers read the length and the message with one call.
    let framed = [&length.to_be_bytes(), asked.bytes.as_slice()].concat();
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; length.into()];
    stream.read_exact(&mut bytes).await?;
    Response::read(bytes, asked).ok_or_else(not_understood)
}

fn not_understood() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "what came is no answer to the query",
    )
}
