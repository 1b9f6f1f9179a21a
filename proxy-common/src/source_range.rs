//! `SOURCE_RANGES`: who may use a load balancer's address (S58).

use crate::{
    net::{AddrV4, AddrV6},
    pod,
};

/// The data that `SOURCE_RANGES` matches by longest prefix. The map's values say
/// nothing: a match is enough.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceRange<A> {
    /// Row of `SERVICES`, in network order; every prefix covers all its bits.
    pub service: [u8; 4],
    pub client: A,
}

impl<A> SourceRange<A> {
    /// Bits of `service`, to be added to the length of a client prefix.
    pub const SERVICE_BITS: u32 = 32;

    #[inline(always)]
    pub const fn new(service: u32, client: A) -> Self {
        Self {
            service: service.to_be_bytes(),
            client,
        }
    }
}

const _: () = assert!(size_of::<SourceRange<AddrV4>>() == 8);
const _: () = assert!(size_of::<SourceRange<AddrV6>>() == 20);
pod!(SourceRange<AddrV4>, SourceRange<AddrV6>);
