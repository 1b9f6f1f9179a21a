//! The scratch memory of the slow path.

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use proxy_common::{
    affinity::{Affinity, AffinityKey},
    family::{V4, V6},
    flow::{Flow, FlowKey},
    frontend::Frontend,
    masquerade::MasqueradeKey,
    net::{AddrV4, AddrV6},
};

use crate::packet::{
    headers::Headers,
    icmp::Quote,
    ip::IpHeader,
    parse,
    skb::{Buffer, Skb},
};

/// Memory of the slow path: more than fits its stack. One for each CPU is
/// enough, because the hooks run with interrupts of their kind held off. On newer
/// real-time kernels they do not, and the agent does not start there.
#[repr(C)]
pub struct Scratch<A> {
    /// The packet.
    pub headers: Headers<A>,
    /// A flow's key, while it is looked for.
    pub key: FlowKey<A>,
    /// The frontend that the client connected to.
    pub frontend: Frontend,
    /// A flow that is being opened.
    pub flow: Flow<A>,
    /// A reply tuple that is being claimed or looked up.
    pub reply: MasqueradeKey<A>,
    /// A client's session affinity that is looked up or noted.
    pub affinity_key: AffinityKey<A>,
    pub affinity: Affinity,
    /// The packet that an ICMP error quotes.
    pub quote: Quote<A>,
    /// The quotation in an ICMP error of ours.
    pub buffer: Buffer,
}

/// Gives code that is generic over the family this CPU's scratch memory.
pub trait ScratchMemory: IpHeader {
    /// Asked for once in a program.
    fn scratch() -> Option<&'static mut Scratch<Self::Addr>>;
}

macro_rules! family_scratch {
    ($family:ident, $addr:ident, $scratch:ident) => {
        #[btf_map]
        static $scratch: PerCpuArray<Scratch<$addr>, 1> = PerCpuArray::new();

        impl ScratchMemory for $family {
            #[inline(always)]
            fn scratch() -> Option<&'static mut Scratch<$addr>> {
                let scratch = $scratch.get_ptr_mut(0)?;
                // SAFETY: only one program at a time runs on a CPU, and each
                // asks for its scratch memory once.
                Some(unsafe { &mut *scratch })
            }
        }
    };
}

family_scratch!(V4, AddrV4, SCRATCH_V4);
family_scratch!(V6, AddrV6, SCRATCH_V6);

/// Reads a packet's headers to this CPU's scratch memory. Once in a program.
#[inline(always)]
pub fn to_scratch<F: ScratchMemory>(skb: Skb) -> Option<&'static mut Scratch<F::Addr>> {
    let scratch = F::scratch()?;
    parse::read::<F>(&skb, &mut scratch.headers)?;
    Some(scratch)
}
