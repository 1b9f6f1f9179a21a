//! Tables of iptables as it was before nftables (`iptables-legacy`).

use std::{
    fs, io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::array;
use crate::model::IpFamily;

/// `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES`, of IPv6 too.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// Length of a table's name.
const NAME: usize = 32;
/// Length of `struct ipt_getinfo`.
const INFO: usize = 84;
/// Offset of the entries in `struct ipt_get_entries`.
const ENTRIES: usize = 40;
/// Offset of the default's entry for forwarded packets in `struct ipt_getinfo`.
const FORWARD_DEFAULT: usize = NAME + 4 + 20 + 2 * 4;
/// Offset of the entries' size there.
const SIZE: usize = INFO - 4;
/// Length of `struct xt_entry_target`, which a verdict follows.
const TARGET: usize = 32;
/// The verdict DROP in a rule: `-NF_DROP - 1`.
const DROP: i32 = -1;

/// A table's rules.
pub(crate) struct Table {
    info: [u8; INFO],
    entries: Vec<u8>,
    family: IpFamily,
}

impl Table {
    /// Reads a table; nothing if there is none. Does not make one.
    pub(crate) fn read(family: IpFamily, name: &str) -> io::Result<Option<Self>> {
        let list = match family {
            IpFamily::V4 => "/proc/thread-self/net/ip_tables_names",
            IpFamily::V6 => "/proc/thread-self/net/ip6_tables_names",
        };
        let names = match fs::read_to_string(list) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            names => names?,
        };
        if !names.lines().any(|found| found == name) {
            return Ok(None);
        }
        let domain = match family {
            IpFamily::V4 => AddressFamily::Inet,
            IpFamily::V6 => AddressFamily::Inet6,
        };
        let socket = socket(domain, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        let mut info = [0; INFO];
        info.iter_mut()
            .zip(name.bytes().take(NAME - 1))
            .for_each(|(to, byte)| *to = byte);
        get(&socket, family, GET_INFO, &mut info)?;
        let size = array(&info, SIZE).map_or(0, u32::from_ne_bytes);
        let length = usize::try_from(size).map_err(io::Error::other)?;
        let mut entries = vec![0; ENTRIES + length];
        entries
            .iter_mut()
            .zip(&info[..NAME])
            .for_each(|(to, byte)| *to = *byte);
        let sizes = entries.iter_mut().skip(NAME).zip(size.to_ne_bytes());
        sizes.for_each(|(to, byte)| *to = byte);
        get(&socket, family, GET_ENTRIES, &mut entries)?;
        Ok(Some(Self {
            info,
            entries,
            family,
        }))
    }

    /// Returns whether there is a chain of this name, or a rule that mentions it.
    pub(crate) fn mentions(&self, chain: &str) -> bool {
        let mut windows = self.entries.windows(chain.len());
        windows.any(|window| window == chain.as_bytes())
    }

    /// Returns whether forwarded packets that no rule accepts are dropped.
    pub(crate) fn drops_forwarded(&self) -> bool {
        self.forward_verdict() == Some(DROP)
    }

    fn forward_verdict(&self) -> Option<i32> {
        let offset = u32::from_ne_bytes(array(&self.info, FORWARD_DEFAULT)?);
        let entry = ENTRIES + usize::try_from(offset).ok()?;
        // Offset of `target_offset` in `struct ipt_entry` and `struct ip6t_entry`.
        let field = match self.family {
            IpFamily::V4 => 88,
            IpFamily::V6 => 140,
        };
        let target = u16::from_ne_bytes(array(&self.entries, entry + field)?);
        let verdict = entry + usize::from(target) + TARGET;
        Some(i32::from_ne_bytes(array(&self.entries, verdict)?))
    }
}

/// `getsockopt` with an argument that goes in and out.
fn get(
    socket: &OwnedFd,
    family: IpFamily,
    option: libc::c_int,
    buffer: &mut [u8],
) -> io::Result<()> {
    let level = match family {
        IpFamily::V4 => libc::IPPROTO_IP,
        IpFamily::V6 => libc::IPPROTO_IPV6,
    };
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(io::Error::other)?;
    // SAFETY: a valid socket, and a buffer of the length that is stated.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            buffer.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
