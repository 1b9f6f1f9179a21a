//! `sock_diag(7)`: lists connected UDP sockets, and ends them.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};
use proxy_common::net::{AddrV4, AddrV6, BePort};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// The kernel's name for connected, of UDP too.
const TCP_ESTABLISHED: u8 = 1;
/// Large enough for whatever the kernel puts into one read.
const BUFFER: usize = 64 << 10;

/// `struct nlmsghdr`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Header {
    length: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
}

/// `struct inet_diag_sockid`: which socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Id {
    source_port: BePort,
    destination_port: BePort,
    source: [u8; 16],
    destination: [u8; 16],
    interface: u32,
    cookie: [u32; 2],
}

/// `struct inet_diag_req_v2`.
#[repr(C)]
struct Request {
    header: Header,
    family: u8,
    protocol: u8,
    extensions: u8,
    zero: u8,
    states: u32,
    id: Id,
}

/// A connected UDP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connected {
    family: u8,
    id: Id,
}

impl Connected {
    /// `SO_COOKIE`.
    pub fn cookie(&self) -> u64 {
        u64::from(self.id.cookie[1]) << 32 | u64::from(self.id.cookie[0])
    }

    /// The interface that it is bound to, else 0.
    pub fn interface(&self) -> u32 {
        self.id.interface
    }

    /// Its own address; IPv4 in the mapped form.
    pub fn local(&self) -> (AddrV6, BePort) {
        (self.wide(self.id.source), self.id.source_port)
    }

    /// Returns the address and port it is connected to; IPv4 in the mapped form.
    pub fn peer(&self) -> (AddrV6, BePort) {
        (self.wide(self.id.destination), self.id.destination_port)
    }

    fn wide(&self, octets: [u8; 16]) -> AddrV6 {
        if i32::from(self.family) == libc::AF_INET {
            let [a, b, c, d, ..] = octets;
            let octets = [a, b, c, d];
            AddrV4 { octets }.mapped()
        } else {
            AddrV6 { octets }
        }
    }
}

/// A netlink socket of the network namespace it was opened in.
pub struct Diag {
    netlink: OwnedFd,
}

impl Diag {
    /// Opens one in the calling thread's network namespace.
    pub fn open() -> io::Result<Self> {
        let netlink = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )?;
        Ok(Self { netlink })
    }

    /// All connected UDP sockets, of both families.
    pub fn connected(&self) -> io::Result<Vec<Connected>> {
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let any = Id {
                source_port: BePort::ZERO,
                destination_port: BePort::ZERO,
                source: [0; 16],
                destination: [0; 16],
                interface: 0,
                cookie: [u32::MAX; 2],
            };
            let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
            self.ask(SOCK_DIAG_BY_FAMILY, flags, byte(family), any)?;
            self.answers(|kind, message| {
                if kind == SOCK_DIAG_BY_FAMILY {
                    found.extend(parse(message));
                }
            })?;
        }
        Ok(found)
    }

    /// Ends a socket: whoever uses it gets `ECONNABORTED`. One that is gone, or
    /// is connected elsewhere by now, is not there.
    pub fn end(&self, socket: &Connected) -> io::Result<()> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        self.ask(SOCK_DESTROY, flags, socket.family, socket.id)?;
        self.answers(|_, _| {})
    }

    /// Fails if this kernel ends no UDP sockets.
    pub fn can_end(&self) -> io::Result<()> {
        // Tells a kernel without UDP sockets to list from one without this one.
        self.connected()?;
        let nobody = Connected {
            family: byte(libc::AF_INET),
            id: Id {
                source_port: BePort::ZERO,
                destination_port: BePort::ZERO,
                source: [0; 16],
                destination: [0; 16],
                interface: 0,
                cookie: [0; 2],
            },
        };
        match self.end(&nobody) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn ask(&self, kind: u16, flags: libc::c_int, family: u8, id: Id) -> io::Result<()> {
        let request = Request {
            header: Header {
                length: u32::try_from(size_of::<Request>()).map_err(io::Error::other)?,
                kind,
                flags: u16::try_from(flags).map_err(io::Error::other)?,
                sequence: 0,
                port: 0,
            },
            family,
            protocol: byte(libc::IPPROTO_UDP),
            extensions: 0,
            zero: 0,
            states: 1 << TCP_ESTABLISHED,
            id,
        };
        // SAFETY: `repr(C)` of integers without padding: initialised bytes.
        let bytes = unsafe {
            std::slice::from_raw_parts((&raw const request).cast::<u8>(), size_of::<Request>())
        };
        send(self.netlink.as_raw_fd(), bytes, MsgFlags::empty())?;
        Ok(())
    }

    /// Reads up to the end of the answer, or the error that it is.
    fn answers(&self, mut take: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = recv(self.netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = &buffer[..length];
            while let Some((header, body, behind)) = split(rest) {
                rest = behind;
                match i32::from(header.kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => return acknowledged(body),
                    _ => take(header.kind, body),
                }
            }
        }
    }
}

/// The first message of a buffer: its header, its body, and what follows.
fn split(buffer: &[u8]) -> Option<(Header, &[u8], &[u8])> {
    let header: Header = read(buffer)?;
    let length = usize::try_from(header.length).ok()?;
    let body = buffer.get(size_of::<Header>()..length)?;
    let behind = buffer.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((header, body, behind))
}

/// The number in `struct nlmsgerr`: zero, or an error.
fn acknowledged(body: &[u8]) -> io::Result<()> {
    match read::<i32>(body) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// `struct inet_diag_msg`: family, state and two more bytes, then the id.
fn parse(message: &[u8]) -> Option<Connected> {
    Some(Connected {
        family: *message.first()?,
        id: read(message.get(4..)?)?,
    })
}

/// Plain integers at the start of a buffer.
fn read<T: Plain>(buffer: &[u8]) -> Option<T> {
    let bytes = buffer.get(..size_of::<T>())?;
    // SAFETY: as many bytes as the type has, of which every pattern is a value.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Types of which every pattern of bytes is a value.
trait Plain {}
impl Plain for i32 {}
impl Plain for Header {}
impl Plain for Id {}

/// A small constant of the C library as the byte it is in messages.
fn byte(constant: libc::c_int) -> u8 {
    constant.to_le_bytes()[0]
}

const _: () = assert!(size_of::<Header>() == 16);
const _: () = assert!(size_of::<Id>() == 48);
const _: () = assert!(size_of::<Request>() == 16 + 56);

#[cfg(test)]
mod tests {
    use std::{
        net::{SocketAddr, UdpSocket},
        os::fd::AsRawFd,
    };

    use super::*;

    fn cookie(socket: &impl AsRawFd) -> u64 {
        let mut cookie = 0_u64;
        let mut length = 8;
        // SAFETY: a valid socket, and a buffer of the length that is stated.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut length,
            )
        };
        assert_eq!(result, 0);
        cookie
    }

    /// Unprivileged, so it ends nothing.
    #[test]
    fn connected_sockets_are_listed_with_their_peer() {
        for (local, peer, wide) in [
            ("127.0.0.1:0", "127.0.0.1:9", "::ffff:127.0.0.1"),
            ("[::1]:0", "[::1]:9", "::1"),
            ("[::]:0", "[::ffff:127.0.0.1]:9", "::ffff:127.0.0.1"),
        ] {
            let socket = UdpSocket::bind(local).expect("a socket");
            socket
                .connect(peer.parse::<SocketAddr>().expect("an address"))
                .expect("connected");
            let unconnected = UdpSocket::bind(local).expect("a socket");
            let listed = Diag::open().and_then(|diag| diag.connected());
            let listed = listed.expect("a list");
            let found = |cookie| listed.iter().find(|socket| socket.cookie() == cookie);
            let wide: std::net::Ipv6Addr = wide.parse().expect("an address");
            assert_eq!(
                found(cookie(&socket)).map(Connected::peer),
                Some((wide.into(), BePort::new(9))),
                "{peer}"
            );
            assert_eq!(found(cookie(&unconnected)), None);
        }
    }

    #[test]
    fn cut_off_messages_are_not_read() {
        assert!(split(&[0; 15]).is_none());
        let mut short = [0_u8; 16];
        short[0] = 200;
        assert!(split(&short).is_none());
        assert_eq!(parse(&[2; 51]), None);
    }
}
