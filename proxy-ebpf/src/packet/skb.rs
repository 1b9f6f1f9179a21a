//! The one place that touches packet memory.

use aya_ebpf::{
    EbpfContext,
    bindings::__sk_buff,
    helpers::generated::{
        bpf_l4_csum_replace, bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_load_bytes,
        bpf_skb_pull_data, bpf_skb_store_bytes, bpf_skb_vlan_pop,
    },
    programs::TcContext,
};

use crate::packet::{barrier::masked, verdict::Fault};

/// Gives a packet from a device without link-layer header an Ethernet header.
#[inline(never)]
pub fn add_ethernet(skb: &Skb) -> Result<(), Fault> {
    // SAFETY: the helper checks its arguments.
    if unsafe { bpf_skb_change_head(skb.raw(), ETH_LEN, 0) } != 0 {
        return Err(Fault);
    }
    skb.write::<[u8; 12]>(0, [0; 12])?;
    skb.write::<u16>(ETH_LEN - 2, skb.protocol())
}

/// The header that precedes the IP header on a device.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Link {
    Ethernet,
    None,
}

/// Length of an Ethernet header without tags.
pub const ETH_LEN: u32 = 14;

/// Offsets above this are refused, so that the verifier can bound them. The
/// headers of a packet fit in one jumbo frame.
pub const MAX_OFFSET: u32 = 0x3fff;

/// Room for bytes of a packet, in scratch memory: so long a stack is short.
pub type Buffer = [u64; BUFFER as usize / 8];

/// Length of a [`Buffer`]: a power of two.
pub const BUFFER: u32 = 128;

/// A length of 1 to [`BUFFER`] bytes, as the verifier wants it.
#[inline(always)]
pub fn length_in_buffer(length: u32) -> u32 {
    masked::<{ BUFFER - 1 }>(length.wrapping_sub(1)) as u32 + 1
}

/// `pkt_type` of a frame addressed to this device.
const PACKET_HOST: u32 = 0;
/// `pkt_type` of a frame addressed to another host.
const PACKET_OTHERHOST: u32 = 3;

/// Whom a frame is addressed to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Addressee {
    ThisDevice,
    OtherMac,
    Many,
}

/// A packet at a hook.
///
/// Functions that are not inlined take it by reference: by value it would use
/// two of the five registers that BPF passes arguments in.
#[derive(Clone, Copy)]
pub struct Skb {
    raw: *mut __sk_buff,
    pub link: Link,
}

impl EbpfContext for Skb {
    fn as_ptr(&self) -> *mut core::ffi::c_void {
        self.raw.cast()
    }
}

impl Skb {
    #[inline(always)]
    pub fn new(ctx: &TcContext, link: Link) -> Self {
        Self {
            raw: ctx.as_ptr().cast(),
            link,
        }
    }

    /// The packet of a context. On which kind of device is not known: for reading
    /// at offsets that are.
    #[inline(always)]
    pub fn of_context(raw: *mut __sk_buff) -> Self {
        Self {
            raw,
            link: Link::None,
        }
    }

    /// The same packet on another kind of device.
    #[inline(always)]
    pub fn on(self, link: Link) -> Self {
        Self { link, ..self }
    }

    /// The raw context, for helpers.
    #[inline(always)]
    pub fn raw(self) -> *mut __sk_buff {
        self.raw
    }

    /// Length of the link-layer header, without VLAN tags.
    #[inline(always)]
    pub fn header_len(self) -> u32 {
        match self.link {
            Link::Ethernet => ETH_LEN,
            Link::None => 0,
        }
    }

    /// Length of the packet in bytes, from the link-layer header on.
    #[inline(always)]
    pub fn len(self) -> u32 {
        // SAFETY: the kernel passes a valid context; all fields below are
        // readable in this program type.
        unsafe { (*self.raw).len }
    }

    /// Ethertype as the kernel knows it, network order.
    #[inline(always)]
    pub fn protocol(self) -> u16 {
        // SAFETY: as in `len`.
        unsafe { (*self.raw).protocol as u16 }
    }

    /// Device of this hook.
    #[inline(always)]
    pub fn ifindex(self) -> u32 {
        // SAFETY: as in `len`.
        unsafe { (*self.raw).ifindex }
    }

    /// Ethertype and content of the VLAN tag that the kernel keeps beside the packet,
    /// both zero if there is none.
    #[inline(always)]
    pub fn tag(self) -> (u16, u16) {
        // SAFETY: as in `len`.
        unsafe {
            if (*self.raw).vlan_present == 0 {
                (0, 0)
            } else {
                ((*self.raw).vlan_proto as u16, (*self.raw).vlan_tci as u16)
            }
        }
    }

    /// Takes that tag off, for a device that is none of its VLAN.
    #[inline(always)]
    pub fn untag(self) -> Result<(), Fault> {
        // SAFETY: the helper checks its argument.
        if self.tag() != (0, 0) && unsafe { bpf_skb_vlan_pop(self.raw()) } != 0 {
            return Err(Fault);
        }
        Ok(())
    }

    /// Payload of each of the segments that the packet will be cut to; 0 for a
    /// packet that stays as it is.
    #[inline(always)]
    pub fn gso_size(self) -> u32 {
        // SAFETY: as in `len`.
        unsafe { (*self.raw).gso_size }
    }

    /// Returns whether a process of this host sent the packet, rather than a device.
    #[inline(always)]
    pub fn is_host_originated(self) -> bool {
        // SAFETY: as in `len`.
        unsafe { (*self.raw).ingress_ifindex == 0 }
    }

    #[inline(always)]
    pub fn addressee(self) -> Addressee {
        // SAFETY: as in `len`.
        match unsafe { (*self.raw).pkt_type } {
            PACKET_HOST => Addressee::ThisDevice,
            PACKET_OTHERHOST => Addressee::OtherMac,
            _ => Addressee::Many,
        }
    }

    #[inline(always)]
    pub fn tc_index(self) -> u32 {
        // SAFETY: as in `len`.
        unsafe { (*self.raw).tc_index }
    }

    #[inline(always)]
    pub fn set_tc_index(self, value: u32) {
        // SAFETY: as in `len`; this field is also writable.
        unsafe { (*self.raw).tc_index = value }
    }

    /// Makes the packet `length` bytes long, in one piece.
    #[inline(always)]
    pub fn resize(self, length: u32) -> Result<(), Fault> {
        // SAFETY: the helper checks its arguments.
        if unsafe { bpf_skb_change_tail(self.raw, length, 0) } != 0 {
            return Err(Fault);
        }
        self.pull(length);
        Ok(())
    }

    /// Copies `T` out of the packet, or `None` if the packet is too short.
    #[inline(always)]
    pub fn read<T: Copy>(self, offset: u32) -> Option<T> {
        let pointer = self.at::<T>(offset)?;
        // SAFETY: `at` checked that all of `T` lies within the packet. The
        // architectures Tandem runs on read unaligned words in one access, and
        // the kernel aligns IP headers to four bytes where they do not.
        Some(unsafe { *pointer })
    }

    /// Overwrites bytes of the packet.
    #[inline(always)]
    pub fn write<T: Copy>(self, offset: u32, value: T) -> Result<(), Fault> {
        let pointer = self.at::<T>(offset).ok_or(Fault)?;
        // SAFETY: as in `read`; the kernel makes the headers private to this
        // packet before a program that writes runs.
        unsafe { *pointer = value };
        Ok(())
    }

    /// Copies `length` bytes of the packet to the front of `buffer`, which has room
    /// for them. For more than a value: the kernel walks over them, not the verifier.
    #[inline(always)]
    pub fn copy_out(self, offset: u32, buffer: &mut Buffer, length: u32) -> Result<(), Fault> {
        let length = length_in_buffer(length);
        // SAFETY: the helper writes no more than the buffer holds, and checks that
        // the packet has as much.
        let result = unsafe {
            bpf_skb_load_bytes(self.raw.cast(), offset, buffer.as_mut_ptr().cast(), length)
        };
        if result == 0 { Ok(()) } else { Err(Fault) }
    }

    /// Overwrites `length` bytes of the packet with those at the front of `buffer`.
    #[inline(always)]
    pub fn copy_in(self, offset: u32, buffer: &Buffer, length: u32) -> Result<(), Fault> {
        let length = length_in_buffer(length);
        let bytes = buffer.as_ptr().cast_mut().cast();
        // SAFETY: the helper reads no more than the buffer holds, and checks that
        // the packet has room for it.
        let result = unsafe { bpf_skb_store_bytes(self.raw, offset, bytes, length, 0) };
        if result == 0 { Ok(()) } else { Err(Fault) }
    }

    #[inline(always)]
    fn at<T>(self, offset: u32) -> Option<*mut T> {
        if offset > MAX_OFFSET {
            return None;
        }
        // SAFETY: as in `len`.
        let (data, end) = unsafe { ((*self.raw).data as usize, (*self.raw).data_end as usize) };
        let start = data + masked::<MAX_OFFSET>(offset);
        if start + size_of::<T>() > end {
            return None;
        }
        Some(start as *mut T)
    }

    /// Makes the first `length` bytes (or all of them) readable in place.
    #[inline(always)]
    pub fn pull(self, length: u32) {
        // SAFETY: as in `len`.
        let linear = unsafe { (*self.raw).data_end - (*self.raw).data };
        let wanted = if length < self.len() {
            length
        } else {
            self.len()
        };
        if linear < wanted {
            // SAFETY: the context is valid. Failure leaves the packet as it
            // was; reads beyond the linear part then return `None`.
            unsafe { bpf_skb_pull_data(self.raw, wanted) };
        }
    }

    /// Adds `difference`, a partial sum, to the transport checksum at `offset`.
    #[inline(always)]
    pub fn add_to_checksum(self, offset: u32, difference: u32, flags: u64) -> Result<(), Fault> {
        // SAFETY: the helper checks the offset.
        let result =
            unsafe { bpf_l4_csum_replace(self.raw, offset, 0, u64::from(difference), flags) };
        if result == 0 { Ok(()) } else { Err(Fault) }
    }
}

/// Compares MAC addresses by hand, because an array comparison becomes a call
/// to `memcmp`.
#[inline(always)]
pub fn same_mac(a: [u8; 6], b: [u8; 6]) -> bool {
    let mut difference = 0;
    let mut index = 0;
    while index < 6 {
        difference |= a[index] ^ b[index];
        index += 1;
    }
    difference == 0
}
