//! Changes one side of a packet's tuple, checksums included.

use aya_ebpf::{
    Global,
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::generated::{bpf_csum_update, bpf_l4_csum_replace},
};
use proxy_common::{
    checksum,
    family::{V4, V6},
    net::{AddrV4, AddrV6, BePort, Protocol},
};

use crate::packet::{
    headers::{self, Headers, Part, Side},
    ip::IpHeader,
    sctp,
    skb::Skb,
    verdict::Fault,
};

/// `BPF_F_IPV6` of `bpf_l4_csum_replace`: the address lies in a header without
/// checksum of its own (Linux 6.16).
const BPF_F_IPV6: u64 = 128;

/// Set by the agent where the kernel knows [`BPF_F_IPV6`].
#[unsafe(no_mangle)]
static KERNEL_HAS_BPF_F_IPV6: Global<u8> = Global::new(0);

/// Rewrites address and port of `side`, on the fast path. `headers` keeps
/// describing the packet as it was, except for the side that changed.
#[inline(always)]
pub fn tuple<F: IpHeader>(
    skb: Skb,
    headers: &mut Headers<F::Addr>,
    side: Side,
    addr: F::Addr,
    port: BePort,
) -> Result<(), Fault> {
    let (old_addr, old_port) = match side {
        Side::Source => (headers.ip.src, headers.src_port),
        Side::Destination => (headers.ip.dst, headers.dst_port),
    };
    let difference = checksum::difference(&old_addr, &addr);
    skb.write(headers.l3 + addr_offset::<F>(side), addr)?;
    update::<F>(skb, headers, side, difference, old_port, port)?;
    match side {
        Side::Source => {
            headers.ip.src = addr;
            headers.src_port = port;
        }
        Side::Destination => {
            headers.ip.dst = addr;
            headers.dst_port = port;
        }
    }
    Ok(())
}

/// After an address was overwritten: updates the checksums and writes the port.
/// Not of SCTP.
#[inline(always)]
fn update<F: IpHeader>(
    skb: Skb,
    headers: &Headers<F::Addr>,
    side: Side,
    difference: u32,
    old_port: BePort,
    port: BePort,
) -> Result<(), Fault> {
    F::add_to_header_checksum(skb, headers.l3, difference)?;
    // Later fragments have no transport header; the checksum in the first one
    // covers them, and is updated there.
    if headers.ip.part != Part::Later {
        skb.write(headers.ip.l4 + headers::port_offset(side), port)?;
        let (offset, flags) = transport_checksum(headers.ip.protocol);
        let offset = headers.ip.l4 + offset;
        add_address::<F>(skb, offset, difference, flags)?;
        if port != old_port {
            // SAFETY: the context is valid; the helper checks the offset.
            let result = unsafe {
                bpf_l4_csum_replace(
                    skb.raw(),
                    offset,
                    u64::from(old_port.to_bits()),
                    u64::from(port.to_bits()),
                    flags | 2,
                )
            };
            if result != 0 {
                return Err(Fault);
            }
        }
    }
    Ok(())
}

/// The same of SCTP.
#[inline(never)]
fn update_sctp<F: IpHeader>(
    skb: &Skb,
    headers: &Headers<F::Addr>,
    side: Side,
    difference: u32,
    port: BePort,
) -> Result<(), Fault> {
    F::add_to_header_checksum(*skb, headers.l3, difference)?;
    // The sum that a network card gave for the whole packet: nothing makes up
    // for a changed address but IPv4's header checksum.
    let mut change = if F::IS_V6 { difference } else { 0 };
    let old_port = match side {
        Side::Source => headers.src_port,
        Side::Destination => headers.dst_port,
    };
    if headers.ip.part != Part::Later && port != old_port {
        let ports = sctp::rewrite_port::<F>(skb, headers, side, port)?;
        change = checksum::add(change, ports);
    }
    // SAFETY: the context is valid; the helper does nothing for packets
    // without such a sum.
    unsafe { bpf_csum_update(skb.raw(), change) };
    Ok(())
}

/// Rewrites address and port of `side` of any packet, on the slow path.
#[inline(always)]
fn slowly<F: IpHeader>(
    skb: Skb,
    headers: &mut Headers<F::Addr>,
    side: Side,
    addr: &F::Addr,
    port: BePort,
) -> Result<(), Fault> {
    let (old_addr, old_port) = match side {
        Side::Source => (&headers.ip.src, headers.src_port),
        Side::Destination => (&headers.ip.dst, headers.dst_port),
    };
    let offset = headers.l3 + addr_offset::<F>(side);
    let difference = address::<F>(&skb, offset, old_addr, addr)?;
    if sctp::is(headers) {
        update_sctp::<F>(&skb, headers, side, difference, port)?;
    } else {
        update::<F>(skb, headers, side, difference, old_port, port)?;
    }
    match side {
        Side::Source => {
            headers.ip.src = *addr;
            headers.src_port = port;
        }
        Side::Destination => {
            headers.ip.dst = *addr;
            headers.dst_port = port;
        }
    }
    Ok(())
}

/// Overwrites an address and returns what that adds to a sum over it.
#[inline(never)]
pub fn address<F: IpHeader>(
    skb: &Skb,
    offset: u32,
    old: &F::Addr,
    new: &F::Addr,
) -> Result<u32, Fault> {
    skb.write(offset, *new)?;
    Ok(checksum::difference(old, new))
}

/// Adds an address change to the checksum at `offset`, which covers the
/// address through the pseudo header.
#[inline(always)]
pub fn add_address<F: IpHeader>(
    skb: Skb,
    offset: u32,
    difference: u32,
    flags: u64,
) -> Result<(), Fault> {
    let flags = flags | u64::from(BPF_F_PSEUDO_HDR);
    if !F::IS_V6 {
        return skb.add_to_checksum(offset, difference, flags);
    }
    if KERNEL_HAS_BPF_F_IPV6.load() != 0 {
        return skb.add_to_checksum(offset, difference, flags | BPF_F_IPV6);
    }
    skb.add_to_checksum(offset, difference, flags)?;
    // In IPv6 the change of the address and that of the checksum cancel out in
    // the sum a network card gave for the whole packet. The helper assumes
    // IPv4, where they do not: take its correction back.
    // SAFETY: the context is valid; the helper does nothing for other packets.
    unsafe { bpf_csum_update(skb.raw(), difference) };
    Ok(())
}

/// Offset of a side's address in the IP header.
#[inline(always)]
pub fn addr_offset<F: IpHeader>(side: Side) -> u32 {
    match side {
        Side::Source => F::SRC_OFFSET,
        Side::Destination => F::DST_OFFSET,
    }
}

/// Offset of the checksum in the transport header, and the flags its update
/// needs: a UDP checksum of zero means none and must stay, and none must
/// become zero.
#[inline(always)]
fn transport_checksum(protocol: Protocol) -> (u32, u64) {
    if protocol == Protocol::UDP {
        (6, u64::from(BPF_F_MARK_MANGLED_0))
    } else {
        (16, 0)
    }
}

/// [`slowly`] as a function that the verifier looks at once.
pub trait Rewrite: IpHeader {
    fn rewrite(
        skb: Skb,
        headers: &mut Headers<Self::Addr>,
        side: Side,
        addr: &Self::Addr,
        port: BePort,
    ) -> Result<(), Fault>;
}

macro_rules! family_rewrite {
    ($family:ident, $addr:ident, $rewrite:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $rewrite(
            skb: *mut __sk_buff,
            headers: *mut Headers<$addr>,
            side: u32,
            addr: *const $addr,
            port: u32,
        ) -> u32 {
            let side = if side == 0 {
                Side::Source
            } else {
                Side::Destination
            };
            // SAFETY: the verifier sees to it that they are null or valid, and the
            // caller has lent them.
            let arguments = unsafe { (headers.as_mut(), addr.as_ref()) };
            let (Some(headers), Some(addr)) = arguments else {
                return 1;
            };
            let port = BePort::from_bits(port as u16);
            slowly::<$family>(Skb::of_context(skb), headers, side, addr, port)
                .is_err()
                .into()
        }

        impl Rewrite for $family {
            #[inline(always)]
            fn rewrite(
                skb: Skb,
                headers: &mut Headers<$addr>,
                side: Side,
                addr: &$addr,
                port: BePort,
            ) -> Result<(), Fault> {
                match $rewrite(skb.raw(), headers, side as u32, addr, port.to_bits().into()) {
                    0 => Ok(()),
                    _ => Err(Fault),
                }
            }
        }
    };
}

family_rewrite!(V4, AddrV4, rewrite_v4);
family_rewrite!(V6, AddrV6, rewrite_v6);
