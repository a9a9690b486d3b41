//! A name server that does what a test tells it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::{Message, MessageType};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

use crate::error::Transport;

/// Serves UDP and TCP on one port of the loopback until dropped.
pub(crate) struct FakeUpstream {
    pub address: SocketAddr,
    asked: Arc<[AtomicUsize; 2]>,
    _tasks: JoinSet<()>,
}

impl FakeUpstream {
    /// `answer` makes the messages to send for a query: none, one, or (by UDP) several.
    pub(crate) async fn start<F>(answer: F) -> Self
    where
        F: Fn(&Message, Transport) -> Vec<Vec<u8>> + Send + Sync + 'static,
    {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let asked = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
        let answer = Arc::new(answer);
        let mut tasks = JoinSet::new();
        let (by_udp, counts) = (answer.clone(), asked.clone());
        tasks.spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
                counts[0].fetch_add(1, Ordering::SeqCst);
                let query = Message::from_vec(&buffer[..length]).unwrap();
                for message in by_udp(&query, Transport::Udp) {
                    udp.send_to(&message, from).await.unwrap();
                }
            }
        });
        let counts = asked.clone();
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                counts[1].fetch_add(1, Ordering::SeqCst);
                let Ok(length) = stream.read_u16().await else {
                    continue;
                };
                let mut bytes = vec![0; length.into()];
                stream.read_exact(&mut bytes).await.unwrap();
                let query = Message::from_vec(&bytes).unwrap();
                for message in answer(&query, Transport::Tcp) {
                    let length = u16::try_from(message.len()).unwrap();
                    stream.write_u16(length).await.unwrap();
                    stream.write_all(&message).await.unwrap();
                }
            }
        });
        FakeUpstream {
            address,
            asked,
            _tasks: tasks,
        }
    }

    /// Answers everything with 203.0.113.7.
    pub(crate) async fn good() -> Self {
        Self::start(|query, _| vec![response(query, 1).to_vec().unwrap()]).await
    }

    /// Hears and never answers.
    pub(crate) async fn silent() -> Self {
        Self::start(|_, _| vec![]).await
    }

    pub(crate) fn asked(&self, transport: Transport) -> usize {
        let index = usize::from(transport == Transport::Tcp);
        self.asked[index].load(Ordering::SeqCst)
    }
}

/// A response with so many addresses, from 203.0.113.7 up.
pub(crate) fn response(query: &Message, addresses: u32) -> Message {
    let mut message = query.clone();
    message.metadata.message_type = MessageType::Response;
    message.metadata.recursion_available = true;
    let base = u32::from(std::net::Ipv4Addr::new(203, 0, 113, 7));
    for index in 0..addresses {
        let data = RData::A(A((base + index).into()));
        message.add_answer(Record::from_rdata(query.queries[0].name.clone(), 60, data));
    }
    message
}
