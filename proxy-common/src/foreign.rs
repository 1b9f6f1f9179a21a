//! `FOREIGN`: what packets of flows bear that kube-proxy has translated, while this proxy
//! takes over from it.
//!
//! The programs enter the flows that they leave to netfilter at first, the agent those
//! that netfilter knows; only the agent removes them.

use crate::{
    masquerade::MasqueradeKey,
    net::{AddrV4, AddrV6, BePort, Protocol},
    pod,
};

/// Key of `FOREIGN`: a packet's ends, as it comes in.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple<A> {
    pub src: A,
    pub dst: A,
    pub src_port: BePort,
    pub dst_port: BePort,
    pub protocol: Protocol,
    pub zero: [u8; 3],
}

impl<A> Tuple<A> {
    /// A reply tuple as the ends of a packet of the backend's. No copy: programs have no
    /// stack to spare where they look for ports.
    #[inline(always)]
    pub const fn of_reply(reply: &MasqueradeKey<A>) -> &Self {
        // SAFETY: both are `repr(C)`, with fields of the same types in the same order.
        unsafe { &*core::ptr::from_ref(reply).cast() }
    }
}

/// Value of `FOREIGN`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// When it was entered, in flow ticks.
    pub entered: u32,
    /// [`Foreign::REQUEST`] or [`Foreign::REPLY`].
    pub direction: u32,
}

impl Foreign {
    /// The client's packets, to the frontend.
    pub const REQUEST: u32 = 0;
    /// The backend's packets, to the address of this node that netfilter masquerades the
    /// client by. No flow of ours may take that port towards the backend.
    pub const REPLY: u32 = 1;
}

const _: () = assert!(size_of::<Tuple<AddrV4>>() == 16);
const _: () = assert!(size_of::<Tuple<AddrV6>>() == 40);
const _: () = assert!(size_of::<Foreign>() == 8);
pod!(Tuple<AddrV4>, Tuple<AddrV6>, Foreign);
