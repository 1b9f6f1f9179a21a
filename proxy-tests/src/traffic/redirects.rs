//! ICMP redirects that reach a host.

use std::io::{self, Read};

use socket2::{Domain, Protocol, Socket, Type};

use crate::family::Family;

/// Hears all of a host's ICMP messages from when it was opened.
#[derive(Debug)]
pub struct Redirects {
    family: Family,
    socket: Socket,
}

impl Redirects {
    /// Starts to listen.
    pub fn listen(family: Family) -> io::Result<Self> {
        let (domain, protocol) = match family {
            Family::V4 => (Domain::IPV4, Protocol::ICMPV4),
            Family::V6 => (Domain::IPV6, Protocol::ICMPV6),
        };
        let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
        socket.set_nonblocking(true)?;
        Ok(Self { family, socket })
    }

    /// Redirects that came since it was last asked.
    pub fn count(&self) -> io::Result<usize> {
        let mut packet = [0; 2048];
        let mut count = 0;
        loop {
            let length = match (&self.socket).read(&mut packet) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(count),
                outcome => outcome?,
            };
            // IPv4 raw sockets show the IP header, too.
            let (header, redirect) = match self.family {
                Family::V4 => (usize::from(packet[0] & 0x0f) * 4, 5),
                Family::V6 => (0, 137),
            };
            if packet[..length].get(header) == Some(&redirect) {
                count += 1;
            }
        }
    }
}
