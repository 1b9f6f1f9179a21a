//! `FLOWS`: what was decided for each flow, both directions in one record.

use crate::{
    net::{AddrV4, AddrV6, Address, BePort, Protocol},
    pod,
};

/// Key of `FLOWS`: the client's side of a flow.
///
/// Packets from the client carry it as source, packets to the client as
/// destination, so both directions find the same record.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey<A> {
    pub addr: A,
    pub port: BePort,
    pub protocol: Protocol,
    /// 0, except where one client port talks to several frontends: then they
    /// take 0, 1, 2 … up to [`FlowKey::MAX_INDEX`].
    pub index: u8,
}

impl<A: Address> FlowKey<A> {
    /// Frontends that one client port can talk to at a time, less one.
    pub const MAX_INDEX: u8 = 15;

    /// The client's first record.
    #[inline(always)]
    pub const fn new(addr: A, port: BePort, protocol: Protocol) -> Self {
        Self {
            addr,
            port,
            protocol,
            index: 0,
        }
    }

    /// The same client's record `index`.
    #[inline(always)]
    #[must_use]
    pub const fn with_index(self, index: u8) -> Self {
        Self { index, ..self }
    }
}

/// Value of `FLOWS`. Holds the addresses themselves, so that no id has to
/// survive a restart for a flow to live on (P7).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow<A> {
    /// The frontend that the client connected to.
    pub frontend_addr: A,
    /// The address that its packets go to.
    pub backend_addr: A,
    /// Source address the backend sees, when [`Flow::MASQUERADE`] is set and
    /// `masquerade_port` is not zero.
    pub masquerade_addr: A,
    pub frontend_port: BePort,
    pub backend_port: BePort,
    /// Zero until the first packet leaves by the backend's device.
    pub masquerade_port: BePort,
    /// [`state`] bits of the direction client to backend.
    pub client_state: u8,
    /// [`state`] bits of the direction backend to client.
    pub backend_state: u8,
    /// Row of `SERVICES` the flow was made for.
    pub service: u32,
    /// Row of `BACKENDS`, with the generation it had then.
    pub backend: u32,
    pub generation: u32,
    /// Time of the last packet, in [`TICK_SHIFT`] ticks of `CLOCK_MONOTONIC`.
    pub last_seen: u32,
    /// Device that leads to the client. For a client outside it is the uplink
    /// that its last packet came in by, as in [`Device::uplink`], and its replies
    /// leave by it. With [`Flow::HOST`] it is the device whose egress its last
    /// packet was translated at, and its replies are handed back as if they had
    /// come in there. 0 for other clients: their replies go where routing leads.
    ///
    /// [`Device::uplink`]: crate::device::Device::uplink
    pub uplink: u32,
    /// [`Flow::MASQUERADE`], [`Flow::CHANGE_PORT`], [`Flow::FRONTEND_ADDRESS`],
    /// [`Flow::OUTGOING`], [`Flow::ROUTED`], [`Flow::HOST`].
    pub flags: u8,
    /// In record 0: the highest index in use for this client port.
    pub highest: u8,
    /// The client's port between the hooks, when [`Flow::CHANGE_PORT`] is set;
    /// zero until the first packet. The backend sees it too, unless the flow is
    /// masqueraded.
    pub changed_port: BePort,
}

impl<A> Flow<A> {
    /// The backend must see an address of this node instead of the client's.
    pub const MASQUERADE: u8 = 1;
    /// Another frontend leads the same client port to the same backend: this
    /// flow's packets need another port, or its replies would look like the
    /// other one's.
    pub const CHANGE_PORT: u8 = 2;
    /// With [`Flow::MASQUERADE`]: client and backend are both this host, which
    /// refuses packets from its own addresses; use the frontend's address.
    pub const FRONTEND_ADDRESS: u8 = 4;
    /// A connection that this node opens itself from a port that is also a
    /// NodePort, so that its replies are not taken for clients of that. Frontend
    /// and backend are its other end, and the masquerade tuple is the
    /// client's own; with another port, where a masqueraded flow has that one.
    /// Without [`Flow::MASQUERADE`] a question of one UDP backend to another.
    pub const OUTGOING: u8 = 8;
    /// The client came in by a bridge whose host is the backend's gateway to it:
    /// replies are routed, and so requests must be (E2).
    pub const ROUTED: u8 = 16;
    /// The client is a process of this host, whose packets come in by no device.
    pub const HOST: u8 = 32;

    /// The uplink of a client outside whose last packet came in by something else:
    /// its replies go where routing leads until it is back.
    pub const NO_UPLINK: u32 = u32::MAX;

    /// The port between the hooks of a client whose own is `client`.
    #[inline(always)]
    pub fn port_between(&self, client: BePort) -> BePort {
        if self.changed_port == BePort::ZERO {
            client
        } else {
            self.changed_port
        }
    }
}

/// State bits, kept apart for each direction because each is written where
/// that direction's packets pass.
pub mod state {
    /// A packet was seen.
    pub const SEEN: u8 = 1;
    /// TCP: a packet other than the initial SYN was seen.
    pub const BEYOND_SYN: u8 = 2;
    /// TCP: a FIN was seen.
    pub const FIN: u8 = 4;
    /// TCP: a RST was seen.
    pub const RST: u8 = 8;
    /// TCP, of the client: it asked the backend itself for a connection from
    /// the same port since it last opened this one.
    pub const DIRECT: u8 = 16;
    /// TCP, of the client: a SYN of the flow was known again where it left by a device
    /// with programs. So will a reset be, which is believed only there.
    pub const LEAVES: u8 = 32;
}

/// `last_seen` counts 2^30 ns, about 1.07 s: a shift instead of a division.
pub const TICK_SHIFT: u32 = 30;

/// A time of `CLOCK_MONOTONIC` in flow ticks.
#[inline(always)]
pub const fn ticks(nanoseconds: u64) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "wraps after 146 years of uptime; ages are computed with wrapping_sub"
    )]
    let ticks = (nanoseconds >> TICK_SHIFT) as u32;
    ticks
}

/// Seconds as flow ticks, rounded up.
pub const fn ticks_from_seconds(seconds: u32) -> u32 {
    ticks(seconds as u64 * 1_000_000_000) + 1
}

const _: () = assert!(size_of::<FlowKey<AddrV4>>() == 8);
const _: () = assert!(size_of::<FlowKey<AddrV6>>() == 20);
const _: () = assert!(size_of::<Flow<AddrV4>>() == 44);
const _: () = assert!(size_of::<Flow<AddrV6>>() == 80);
pod!(FlowKey<AddrV4>, FlowKey<AddrV6>, Flow<AddrV4>, Flow<AddrV6>);
