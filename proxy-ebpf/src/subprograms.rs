//! Functions that the verifier looks at by themselves.
//!
//! It follows others anew from each state that they are called in. These it
//! follows once, whatever they are called with (global subprograms, Linux 5.6), so
//! they are for what is long and called from many places. Their arguments are
//! numbers, the context and pointers to memory of a size that BTF tells, and
//! so they are not generic. They return a number, of which the verifier knows
//! nothing where they are called; the compiler may know more.
//!
//! Linux 6.1 takes no key or value of a map from the memory of an argument: what
//! looks up copies them to its own stack.

use aya_ebpf::bindings::__sk_buff;
use proxy_common::{
    family::{Family, V4, V6},
    flow::FlowKey,
    net::{AddrV4, AddrV6, BePort},
    socket::Peer,
};

use crate::{
    flow::{
        masquerade::{self, Search},
        open::{self, Place},
        record,
    },
    lookup::choose::{self, Destination},
    maps::tables::Scratch,
    packet::{
        barrier::masked,
        parse::{self, Headers, Ip},
        rewrite::{self, Side},
        skb::Skb,
        verdict::Fault,
    },
    socket_lb::peers,
};

/// The functions of a family.
pub trait Subprograms: Family {
    /// [`record::remove_record`].
    fn remove(key: &FlowKey<Self::Addr>);
    /// [`choose::look_up`].
    fn look_up(scratch: &mut Scratch<Self::Addr>) -> Destination;
    /// [`choose::hash`].
    fn hash(headers: &Headers<Self::Addr>) -> u64;
    /// [`choose::hash_of_client`].
    fn hash_of_client(headers: &Headers<Self::Addr>) -> u64;
    /// [`open::place`].
    fn place(scratch: &mut Scratch<Self::Addr>) -> Place;
    /// [`open::is_taken`].
    fn is_taken(scratch: &Scratch<Self::Addr>) -> bool;
    /// [`masquerade::look_at_next_port`].
    fn look_at_next_port(search: &mut Search<Self::Addr>) -> bool;
    /// [`masquerade::claim`].
    fn claim(skb: Skb, scratch: &mut Scratch<Self::Addr>) -> bool;
    /// [`rewrite::slowly`].
    fn rewrite(
        skb: Skb,
        headers: &mut Headers<Self::Addr>,
        side: Side,
        addr: &Self::Addr,
        port: BePort,
    ) -> Result<(), Fault>;
}

macro_rules! family_functions {
    (
        $family:ident, $addr:ident, $remove:ident, $look_up:ident, $hash:ident, $hash_of_client:ident,
        $place:ident, $is_taken:ident, $look_at_next_port:ident, $claim:ident,
        $rewrite:ident
    ) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $remove(key: *const FlowKey<$addr>) -> u32 {
            // SAFETY: the verifier sees to it that this is null or valid, and the
            // caller has lent it. The same below.
            if let Some(key) = unsafe { key.as_ref() } {
                record::remove_record::<$family>(*key);
            }
            0
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $look_up(scratch: *mut Scratch<$addr>) -> u32 {
            // SAFETY: see above.
            unsafe { scratch.as_mut() }
                .map_or(0, |scratch| choose::look_up::<$family>(scratch) as u32)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $hash(headers: *const Headers<$addr>) -> u64 {
            // SAFETY: see above.
            unsafe { headers.as_ref() }.map_or(0, |headers| choose::hash::<$family>(headers))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $hash_of_client(headers: *const Headers<$addr>) -> u64 {
            // SAFETY: see above.
            unsafe { headers.as_ref() }
                .map_or(0, |headers| choose::hash_of_client::<$family>(headers))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $place(scratch: *mut Scratch<$addr>) -> u32 {
            // SAFETY: see above.
            unsafe { scratch.as_mut() }.map_or(0, |scratch| open::place::<$family>(scratch) as u32)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $is_taken(scratch: *const Scratch<$addr>) -> u32 {
            // SAFETY: see above.
            unsafe { scratch.as_ref() }
                .map_or(0, |scratch| open::is_taken::<$family>(scratch).into())
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $look_at_next_port(search: *mut Search<$addr>) -> u32 {
            // SAFETY: see above.
            unsafe { search.as_mut() }.map_or(0, |search| {
                masquerade::look_at_next_port::<$family>(search).into()
            })
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $claim(skb: *mut __sk_buff, scratch: *mut Scratch<$addr>) -> u32 {
            // SAFETY: see above.
            unsafe { scratch.as_mut() }.map_or(0, |scratch| {
                masquerade::claim::<$family>(Skb::of_context(skb), scratch).into()
            })
        }

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
            // SAFETY: see above.
            let arguments = unsafe { (headers.as_mut(), addr.as_ref()) };
            let (Some(headers), Some(addr)) = arguments else {
                return 1;
            };
            let port = BePort::from_bits(port as u16);
            rewrite::slowly::<$family>(Skb::of_context(skb), headers, side, addr, port)
                .is_err()
                .into()
        }

        impl Subprograms for $family {
            #[inline(always)]
            fn remove(key: &FlowKey<$addr>) {
                $remove(key);
            }
            #[inline(always)]
            fn look_up(scratch: &mut Scratch<$addr>) -> Destination {
                Destination::from_number($look_up(scratch))
            }
            #[inline(always)]
            fn hash(headers: &Headers<$addr>) -> u64 {
                $hash(headers)
            }
            #[inline(always)]
            fn hash_of_client(headers: &Headers<$addr>) -> u64 {
                $hash_of_client(headers)
            }
            #[inline(always)]
            fn place(scratch: &mut Scratch<$addr>) -> Place {
                Place::from_number($place(scratch))
            }
            #[inline(always)]
            fn is_taken(scratch: &Scratch<$addr>) -> bool {
                $is_taken(scratch) != 0
            }
            #[inline(always)]
            fn look_at_next_port(search: &mut Search<$addr>) -> bool {
                masked::<1>($look_at_next_port(search)) != 0
            }
            #[inline(always)]
            fn claim(skb: Skb, scratch: &mut Scratch<$addr>) -> bool {
                $claim(skb.raw(), scratch) != 0
            }
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

family_functions!(
    V4,
    AddrV4,
    remove_v4,
    look_up_v4,
    hash_v4,
    hash_of_client_v4,
    place_v4,
    is_taken_v4,
    look_at_next_port_v4,
    claim_v4,
    rewrite_v4
);
family_functions!(
    V6,
    AddrV6,
    remove_v6,
    look_up_v6,
    hash_v6,
    hash_of_client_v6,
    place_v6,
    is_taken_v6,
    look_at_next_port_v6,
    claim_v6,
    rewrite_v6
);

/// [`parse::follow_extension`].
#[inline(always)]
pub fn follow_extension(skb: Skb, ip: &mut Ip<AddrV6>) -> bool {
    follow_extension_v6(skb.raw(), ip) != 0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn follow_extension_v6(skb: *mut __sk_buff, ip: *mut Ip<AddrV6>) -> u32 {
    // SAFETY: as above.
    unsafe { ip.as_mut() }.map_or(0, |ip| {
        parse::follow_extension(Skb::of_context(skb), ip).into()
    })
}

/// [`peers::fitness`].
#[inline(always)]
pub fn fitness(entry: &Peer, peer: &Peer) -> u32 {
    fitness_of_peer(entry, peer)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fitness_of_peer(entry: *const Peer, peer: *const Peer) -> u32 {
    // SAFETY: as above.
    let arguments = unsafe { (entry.as_ref(), peer.as_ref()) };
    let (Some(entry), Some(peer)) = arguments else {
        return peers::CLASH;
    };
    peers::fitness(entry, peer)
}
