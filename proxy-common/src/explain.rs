//! `EXPLAIN`: what becomes of a new flow, asked of the programs themselves.

use crate::{frontend::Frontend, pod, service::SlotRange};

/// The one value of `EXPLAIN`: the agent writes the question, the program
/// `explain` the answer. No packet is touched, no flow opened, nothing counted.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explain {
    pub question: Question,
    pub answer: Answer,
}

/// Where the packet comes from, which a test run cannot show.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Flags of the device that it came in by, as in
    /// [`Device::flags`](crate::device::Device::flags).
    pub device_flags: u32,
    /// [`Question::HOST`], [`Question::OFFLINE`].
    pub flags: u32,
}

impl Question {
    /// From a process of this host.
    pub const HOST: u32 = 1;
    /// There are no devices and routes to ask: what is on this node counts as
    /// reached by a device with programs.
    pub const OFFLINE: u32 = 2;
}

/// What the datapath would do.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// A [`Decision`]; [`Answer::UNANSWERED`] before the program ran.
    pub decision: u8,
    /// A [`Client`].
    pub client: u8,
    /// 1: the backend sees an address of this node.
    pub masquerade: u8,
    /// 1: session affinity remembers the backend.
    pub remembered: u8,
    /// Row of `BACKENDS` that is chosen, if the decision is to forward.
    pub backend: u32,
    /// The frontend, if there is one; its [`Frontend::LOCAL_SET`] says which
    /// set is used for this client.
    pub frontend: Frontend,
    /// The set that is chosen from.
    pub range: SlotRange,
}

impl Answer {
    /// The program has not answered.
    pub const UNANSWERED: u8 = u8::MAX;
}

/// What becomes of a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Decision {
    /// Not ours.
    Pass,
    Forward,
    /// Refused: no endpoint anywhere can serve (S43).
    NoEndpoint,
    /// Dropped: no endpoint on this node, as the traffic policy wants it (S43).
    NoLocalEndpoint,
    /// Refused: the address is a Service's, the port is not (S46).
    UnknownPort,
    /// Dropped: not in loadBalancerSourceRanges (S58).
    Denied,
    /// Dropped: an address for cluster IPs that no Service has (S47).
    Unallocated,
}

impl Decision {
    /// All decisions, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::Pass,
        Self::Forward,
        Self::NoEndpoint,
        Self::NoLocalEndpoint,
        Self::UnknownPort,
        Self::Denied,
        Self::Unallocated,
    ];
}

/// Who a client is to traffic policies (S39).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Client {
    /// From elsewhere, or nothing tells pods from others.
    External,
    /// A pod: of this node, or of the cluster, as the local detector has it
    /// (S68).
    Pod,
    /// This node itself, whatever the process (S41).
    Host,
}

impl Client {
    /// All clients, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::External, Self::Pod, Self::Host];
}

const _: () = assert!(size_of::<Explain>() == 32);
pod!(Explain);
