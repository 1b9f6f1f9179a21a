//! SCTP over raw sockets, as far as it takes to open an association and to have
//! data come back: few kernels of test machines have the protocol itself. Every
//! packet that is received must have the checksum that a sender would give it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    family::Family,
    host::Host,
    packet::{chunk, crc32c},
};

const HEADER: usize = 12;
/// An INIT's value: tag, window, two numbers of streams, first TSN.
const INIT: usize = 16;
const CLIENT_TAG: u32 = 0x00c1_1e27;
const SERVER_TAG: u32 = 0x005e_27e2;
const POLL: Duration = Duration::from_millis(50);

/// A packet with one chunk.
#[derive(Debug, PartialEq, Eq)]
struct Packet {
    src: u16,
    dst: u16,
    tag: u32,
    chunk: u8,
    value: Vec<u8>,
}

impl Packet {
    fn bytes(&self) -> Vec<u8> {
        let length = u16::try_from(4 + self.value.len()).expect("a chunk's length");
        let mut bytes = [self.src.to_be_bytes(), self.dst.to_be_bytes()].concat();
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend([self.chunk, 3]);
        bytes.extend(length.to_be_bytes());
        bytes.extend(&self.value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let sum = crc32c(&bytes);
        bytes[8..HEADER].copy_from_slice(&sum);
        bytes
    }

    /// Errors: too short, or the checksum is wrong.
    fn parse(bytes: &[u8]) -> io::Result<Self> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what);
        if bytes.len() < HEADER + 4 {
            return Err(invalid("no chunk"));
        }
        let mut blank = bytes.to_vec();
        blank[8..HEADER].fill(0);
        if crc32c(&blank) != bytes[8..HEADER] {
            return Err(invalid("a wrong checksum"));
        }
        let short = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let value = bytes.get(HEADER + 4..HEADER + usize::from(short(14)));
        Ok(Self {
            src: short(0),
            dst: short(2),
            tag: u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
            chunk: bytes[HEADER],
            value: value.ok_or_else(|| invalid("half a chunk"))?.to_vec(),
        })
    }
}

fn init_value(tag: u32) -> Vec<u8> {
    let mut value = tag.to_be_bytes().to_vec();
    value.extend(0x0001_0000_u32.to_be_bytes());
    value.extend([0, 1, 0, 1]);
    value.extend(1_u32.to_be_bytes());
    debug_assert_eq!(value.len(), INIT);
    value
}

/// A raw socket at any address, with the interface of a UDP socket.
fn raw(family: Family) -> io::Result<UdpSocket> {
    let (domain, any): (_, IpAddr) = match family {
        Family::V4 => (Domain::IPV4, Ipv4Addr::UNSPECIFIED.into()),
        Family::V6 => (Domain::IPV6, Ipv6Addr::UNSPECIFIED.into()),
    };
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(132)))?;
    socket.bind(&SocketAddr::new(any, 0).into())?;
    socket.set_read_timeout(Some(POLL))?;
    Ok(socket.into())
}

/// Returns the next packet, and its sender; `None` if none came in a while.
fn receive(socket: &UdpSocket, family: Family) -> Option<(io::Result<Packet>, SocketAddr)> {
    let mut buffer = [0; 4096];
    let (length, sender) = socket.recv_from(&mut buffer).ok()?;
    // IPv4's raw sockets give the IP header, too.
    let header = match family {
        Family::V4 => usize::from(buffer[0] & 0x0f) * 4,
        Family::V6 => 0,
    };
    let packet = Packet::parse(&buffer[header.min(length)..length]);
    Some((packet, SocketAddr::new(sender.ip(), 0)))
}

/// Accepts every association on one port, and sends data back.
#[derive(Debug)]
pub struct SctpServer {
    stopping: Arc<AtomicBool>,
    answerers: Vec<JoinHandle<()>>,
}

impl SctpServer {
    pub fn start(host: &Host, families: &[Family], port: u16) -> Result<Self> {
        let stopping = Arc::new(AtomicBool::new(false));
        let mut answerers = Vec::new();
        for &family in families {
            let socket = host.run(|| raw(family));
            let socket = socket.with_context(|| format!("{}: SCTP", host.name()))?;
            let stop = Arc::clone(&stopping);
            answerers.push(host.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if let Some((Ok(packet), client)) = receive(&socket, family)
                        && packet.dst == port
                        && let Some(answer) = answer(packet)
                    {
                        let _ = socket.send_to(&answer.bytes(), client);
                    }
                }
            }));
        }
        Ok(Self {
            stopping,
            answerers,
        })
    }
}

fn answer(packet: Packet) -> Option<Packet> {
    let (chunk, value) = match packet.chunk {
        chunk::INIT => (chunk::INIT_ACK, init_value(SERVER_TAG)),
        chunk::DATA if packet.tag == SERVER_TAG => (chunk::DATA, packet.value),
        _ => return None,
    };
    Some(Packet {
        src: packet.dst,
        dst: packet.src,
        tag: CLIENT_TAG,
        chunk,
        value,
    })
}

impl Drop for SctpServer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        for answerer in self.answerers.drain(..) {
            let _ = answerer.join();
        }
    }
}

/// Opens an association from `port` to `target`, and has data of each of these
/// lengths come back.
pub fn ask_sctp(
    target: SocketAddr,
    port: u16,
    lengths: &[usize],
    patience: Duration,
) -> io::Result<()> {
    let family = Family::of(target.ip());
    let socket = raw(family)?;
    // Packets from elsewhere are not seen.
    socket.connect(SocketAddr::new(target.ip(), 0))?;
    let deadline = Instant::now() + patience;
    let exchange = |tag, chunk, value: Vec<u8>| {
        let request = Packet {
            src: port,
            dst: target.port(),
            tag,
            chunk,
            value,
        };
        socket.send(&request.bytes())?;
        while Instant::now() < deadline {
            if let Some((packet, _)) = receive(&socket, family) {
                let packet = packet?;
                if (packet.src, packet.dst) == (request.dst, request.src) {
                    return Ok((request, packet));
                }
            }
        }
        Err(io::Error::from(io::ErrorKind::TimedOut))
    };
    let (_, accepted) = exchange(0, chunk::INIT, init_value(CLIENT_TAG))?;
    if (accepted.chunk, accepted.tag) != (chunk::INIT_ACK, CLIENT_TAG) {
        return Err(io::Error::other(format!("{accepted:?}")));
    }
    for &length in lengths {
        let value = (0..=u8::MAX).cycle().take(length).collect();
        let (request, reply) = exchange(SERVER_TAG, chunk::DATA, value)?;
        if (reply.chunk, &reply.value) != (chunk::DATA, &request.value) {
            return Err(io::Error::other(format!("{reply:?}")));
        }
    }
    Ok(())
}
