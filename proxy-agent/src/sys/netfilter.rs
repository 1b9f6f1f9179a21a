//! Netfilter through netlink: connections that it tracks, and nftables' chains.

pub mod conntrack;
pub(crate) mod iptables;
pub(crate) mod nftables;

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// Large enough for whatever the kernel puts into one read.
const BUFFER: usize = 64 << 10;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Length of `struct nfgenmsg`, with which each message begins.
const GENERAL: usize = 4;
/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`, and whom they are for.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NFTABLES: u16 = 10;
/// `NLA_F_NESTED`: the attribute consists of attributes.
const NESTED: u16 = 0x8000;
/// `NLA_TYPE_MASK`.
const TYPE: u16 = 0x3fff;

/// A netlink socket of the network namespace it was opened in.
struct Socket {
    netlink: OwnedFd,
}

impl Socket {
    /// Opens one in the calling thread's network namespace.
    fn open() -> io::Result<Self> {
        let netlink = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )?;
        Ok(Self { netlink })
    }

    /// Asks for all objects of a kind, and shows `take` the family and the attributes of
    /// each.
    fn list(&self, kind: u16, family: u8, mut take: impl FnMut(u8, &[u8])) -> io::Result<()> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
        self.ask(kind, flags, family, &[])?;
        self.answers(|body| {
            if let (Some(family), Some(attributes)) = (body.first(), body.get(GENERAL..)) {
                take(*family, attributes);
            }
        })
    }

    /// Asks for something to be done, and waits until it is.
    fn order(&self, kind: u16, family: u8, attributes: &[u8]) -> io::Result<()> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        self.ask(kind, flags, family, attributes)?;
        self.answers(|_| {})
    }

    /// Changes something of nftables, in a batch of one. Both of its ends and the change
    /// are acknowledged.
    fn change(&self, kind: u16, family: u8, attributes: &[u8]) -> io::Result<()> {
        let flags = libc::NLM_F_REQUEST;
        let batch = [
            message(BATCH_BEGIN, flags, 0, NFTABLES, &[])?,
            message(kind, flags | libc::NLM_F_ACK, family, 0, attributes)?,
            message(BATCH_END, flags, 0, NFTABLES, &[])?,
        ];
        send(self.netlink.as_raw_fd(), &batch.concat(), MsgFlags::empty())?;
        self.answers(|_| {})
    }

    fn ask(&self, kind: u16, flags: i32, family: u8, attributes: &[u8]) -> io::Result<()> {
        let message = message(kind, flags, family, 0, attributes)?;
        send(self.netlink.as_raw_fd(), &message, MsgFlags::empty())?;
        Ok(())
    }

    /// Reads up to the end of the answer, or the error that it is.
    fn answers(&self, mut take: impl FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = recv(self.netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some((message, behind)) = split(rest) {
                rest = behind;
                match i32::from(message.kind) {
                    libc::NLMSG_DONE | libc::NLMSG_ERROR => return outcome(message.body),
                    _ => take(message.body),
                }
            }
        }
    }
}

/// A message to the kernel.
fn message(
    kind: u16,
    flags: i32,
    family: u8,
    resource: u16,
    attributes: &[u8],
) -> io::Result<Vec<u8>> {
    let length = HEADER + GENERAL + attributes.len();
    let mut message = Vec::with_capacity(length);
    let length = u32::try_from(length).map_err(io::Error::other)?;
    let flags = u16::try_from(flags).map_err(io::Error::other)?;
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Sequence number and port.
    message.extend([0; 8]);
    message.extend([family, 0]);
    message.extend(resource.to_be_bytes());
    message.extend(attributes);
    message.resize(message.len().next_multiple_of(4), 0);
    Ok(message)
}

/// A message, without its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Message<'a> {
    kind: u16,
    body: &'a [u8],
}

/// The first message of a buffer, and what follows.
fn split(buffer: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(array(buffer, 0)?)).ok()?;
    let message = Message {
        kind: u16::from_ne_bytes(array(buffer, 4)?),
        body: buffer.get(HEADER..length)?,
    };
    let behind = buffer.get(length.next_multiple_of(4)..);
    Some((message, behind.unwrap_or_default()))
}

/// The number at the start of an acknowledgement, or of an answer's end: an error, unless
/// it is zero.
fn outcome(body: &[u8]) -> io::Result<()> {
    match array(body, 0).map(i32::from_ne_bytes) {
        Some(error) if error < 0 => Err(io::Error::from_raw_os_error(-error)),
        _ => Ok(()),
    }
}

/// The attributes in a message or in another attribute, up to the first that is cut off.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(array(bytes, 0)?));
        let kind = u16::from_ne_bytes(array(bytes, 2)?) & TYPE;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the attribute of a kind.
fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(found, value)| (found == kind).then_some(value))
}

/// Appends an attribute.
fn put(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// Appends an attribute that consists of attributes.
fn put_nested(message: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    fill(&mut inner);
    put(message, kind | NESTED, &inner);
}

/// So many bytes from an offset on.
fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut message = Vec::new();
        put(&mut message, 3, b"abc");
        put_nested(&mut message, 7, |inner| put(inner, 1, &[9]));
        let read: Vec<_> = attributes(&message).collect();
        assert_eq!(read[0], (3, &b"abc"[..]));
        assert_eq!(attribute(read[1].1, 1), Some(&[9][..]));
        assert_eq!(attribute(&message, 4), None);
    }

    #[test]
    fn messages_follow_each_other() {
        let mut buffer = Vec::new();
        for (kind, body) in [(0x0101_u16, &b"12345"[..]), (3, &[0; 4])] {
            buffer.extend(u32::try_from(HEADER + body.len()).unwrap().to_ne_bytes());
            buffer.extend(kind.to_ne_bytes());
            buffer.extend([0; 10]);
            buffer.extend(body);
            buffer.resize(buffer.len().next_multiple_of(4), 0);
        }
        let (first, rest) = split(&buffer).expect("a message");
        assert_eq!((first.kind, first.body), (0x0101, &b"12345"[..]));
        let (second, rest) = split(rest).expect("another one");
        assert_eq!(i32::from(second.kind), libc::NLMSG_DONE);
        assert!(outcome(second.body).is_ok() && rest.is_empty());
        let error = outcome(&(-libc::EPERM).to_ne_bytes()).expect_err("an error");
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }

    proptest! {
        /// Whatever comes, reading ends, within the bytes that are there.
        #[test]
        fn any_bytes_are_read_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut rest = &bytes[..];
            while let Some((message, behind)) = split(rest) {
                prop_assert!(behind.len() < rest.len());
                prop_assert!(attributes(message.body).count() <= message.body.len() / 4);
                rest = behind;
            }
            prop_assert!(attributes(&bytes).count() <= bytes.len() / 4);
        }
    }
}
