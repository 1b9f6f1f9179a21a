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

/// The origin of a packet, which it does not show itself.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Flags of the device that it came in by, as in
    /// [`Device::flags`](crate::device::Device::flags).
    pub device_flags: u32,
    /// [`Question::HOST`] and the other flags.
    pub flags: u32,
}

impl Question {
    /// From a process of this host; it leaves by a device.
    pub const HOST: u32 = 1;
    /// Never a packet on a device: a process of this host calls one of this host's own
    /// addresses.
    pub const CALL: u32 = 2;
    /// There are no devices, routes and sockets to ask: what is on this node counts as
    /// reached by a device with programs, and nothing listens at a cluster IP.
    pub const OFFLINE: u32 = 4;

    /// Returns whether all of these flags are not set.
    #[inline(always)]
    pub const fn has_none(self, flags: u32) -> bool {
        self.flags & flags == 0
    }

    /// Returns whether a process of this host asks.
    #[inline(always)]
    pub const fn is_of_host(self) -> bool {
        self.flags & (Self::HOST | Self::CALL) != 0
    }
}

/// The datapath's answer: what it would do, and why.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// A [`Decision`]; [`Answer::UNANSWERED`] before the program ran.
    pub decision: u8,
    /// A [`Client`]. With what follows, if the decision is to forward.
    pub client: u8,
    /// A [`Masquerade`].
    pub masquerade: u8,
    /// [`Answer::REMEMBERED`], [`Answer::LOCAL_POLICY`].
    pub flags: u8,
    /// Row of `BACKENDS` that is chosen.
    pub backend: u32,
    /// The frontend, if there is one, whatever the decision; its
    /// [`Frontend::LOCAL_SET`] says which set is used for this client.
    pub frontend: Frontend,
    /// The set that is chosen from.
    pub range: SlotRange,
}

impl Answer {
    /// The program has not answered.
    pub const UNANSWERED: u8 = u8::MAX;

    /// Session affinity remembers the backend.
    pub const REMEMBERED: u8 = 1;
    /// The traffic policy for this kind of frontend is Local, also for clients that are
    /// exempt from it.
    pub const LOCAL_POLICY: u8 = 2;
}

/// The decision about a new flow.
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
    /// Passes: a process of this node listens at the cluster IP.
    Listener,
    /// Passes: only this node's own processes reach a NodePort at a loopback address
    /// (S56).
    Loopback,
    /// Dropped: a reset that belongs to no flow.
    Reset,
    /// Dropped: the client port has as many flows as it can have.
    TooManyFrontends,
}

impl Decision {
    /// All decisions, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::Pass,
        Self::Forward,
        Self::NoEndpoint,
        Self::NoLocalEndpoint,
        Self::UnknownPort,
        Self::Denied,
        Self::Unallocated,
        Self::Listener,
        Self::Loopback,
        Self::Reset,
        Self::TooManyFrontends,
    ];

    /// Returns whether the flow is addressed to a frontend.
    #[inline(always)]
    pub const fn has_frontend(self) -> bool {
        !matches!(self, Self::Pass | Self::UnknownPort | Self::Unallocated)
    }
}

/// The choice between the client's address and one of this node for a backend to see, and
/// its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Masquerade {
    /// The client's: pods are seen as they are at a cluster IP (S63).
    Pod,
    /// The client's: nothing tells pods from others at a cluster IP.
    NoDetector,
    /// The client's: the external policy Local keeps it (S39).
    LocalPolicy,
    /// The client's: it is a pod of this node, so replies pass here (E19).
    ClientIsHere,
    /// The client's: a device with programs leads to the backend, which is on this node.
    BackendIsHere,
    /// The client's: the backend has an address of this node, and its replies leave by
    /// the client's device.
    BackendIsNode,
    /// This node's: the client is the backend itself (S65).
    Itself,
    /// This node's: so is the client (S39, E5).
    Host,
    /// This node's: `--masquerade-all` (S63).
    All,
    /// This node's: the local detector knows the client as no pod (S63).
    NotPod,
    /// This node's: the backend is on another node (S64).
    BackendElsewhere,
    /// This node's: a device without programs leads to the backend, although that is on
    /// this node.
    NoPrograms,
    /// This node's: what leads to the backend is not known to lead to pods of this node,
    /// although that is on it.
    NotPodDevice,
    /// This node's: no route leads to the backend, although that is on this node.
    NoRoute,
}

impl Masquerade {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; 14] = [
        Self::Pod,
        Self::NoDetector,
        Self::LocalPolicy,
        Self::ClientIsHere,
        Self::BackendIsHere,
        Self::BackendIsNode,
        Self::Itself,
        Self::Host,
        Self::All,
        Self::NotPod,
        Self::BackendElsewhere,
        Self::NoPrograms,
        Self::NotPodDevice,
        Self::NoRoute,
    ];

    /// Returns whether the backend sees an address of this node.
    #[inline(always)]
    pub const fn hides_client(self) -> bool {
        self as u8 >= Self::Itself as u8
    }
}

/// The kind of a client, as traffic policies see it (S39).
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_in_the_order_of_their_numbers() {
        let decisions = Decision::ALL.map(|decision| decision as u8);
        let reasons = Masquerade::ALL.map(|reason| reason as u8);
        let clients = Client::ALL.map(|client| client as u8);
        for numbers in [&decisions[..], &reasons, &clients] {
            assert!((0..).zip(numbers).all(|(place, number)| place == *number));
        }
    }
}
