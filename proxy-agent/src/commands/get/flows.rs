//! `get flows`: connections that are being translated.

use std::{collections::BTreeMap, fmt, io, net::SocketAddr};

use nix::time::{ClockId, clock_gettime};
use proxy_common::{
    family::Family,
    flow::{Flow, FlowKey, TICK_SHIFT, state, ticks},
    frontend::FrontendKey,
    net::{BePort, Protocol},
};
use serde::Serialize;

use crate::{
    commands::get::render::{self, Row},
    model::ServicePortName,
    plan::write::Tables,
};

/// A flow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct FlowRow {
    /// The Service the frontend belongs to now; empty if it went.
    pub namespace: String,
    pub name: String,
    pub port: String,
    pub protocol: String,
    pub family: &'static str,
    pub client: SocketAddr,
    pub frontend: SocketAddr,
    pub backend: SocketAddr,
    /// The client's address and port as the backend sees them, if they are changed.
    pub masquerade: Option<SocketAddr>,
    pub state: FlowState,
    /// Time since the last packet; the clock of flows ticks once a second.
    pub idle_seconds: u64,
}

/// The progress of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowState {
    /// TCP: the handshake is not finished.
    Opening,
    /// TCP: data may pass.
    Established,
    /// TCP: both sides have finished, or one has reset the connection.
    Closing,
    /// Other protocols: the backend has not answered yet.
    Unreplied,
    /// Other protocols: packets have passed both ways.
    Replied,
}

impl FlowState {
    /// As the sweeper sees it.
    fn of<A>(flow: &Flow<A>, protocol: Protocol) -> Self {
        let both = flow.client_state & flow.backend_state;
        let any = flow.client_state | flow.backend_state;
        if protocol.has_connections() {
            if both & state::FIN != 0 || any & state::RST != 0 {
                Self::Closing
            } else if flow.client_state & state::BEYOND_SYN != 0
                && flow.backend_state & state::SEEN != 0
            {
                Self::Established
            } else {
                Self::Opening
            }
        } else if both & state::SEEN != 0 {
            Self::Replied
        } else {
            Self::Unreplied
        }
    }
}

impl fmt::Display for FlowState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Opening => "opening",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::Unreplied => "unreplied",
            Self::Replied => "replied",
        })
    }
}

impl Row for FlowRow {
    const HEADERS: &'static [&'static str] = &[
        "SERVICE",
        "PROTOCOL",
        "CLIENT",
        "FRONTEND",
        "BACKEND",
        "MASQUERADE",
        "STATE",
        "IDLE",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            render::service(&self.namespace, &self.name, &self.port),
            self.protocol.clone(),
            self.client.to_string(),
            self.frontend.to_string(),
            self.backend.to_string(),
            render::cell(self.masquerade),
            self.state.to_string(),
            format!("{}s", self.idle_seconds),
        ]
    }
}

/// The time now, on the clock of flows.
pub(super) fn now() -> io::Result<u32> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    let nanoseconds = time.tv_sec() * 1_000_000_000 + time.tv_nsec();
    Ok(ticks(nanoseconds.cast_unsigned()))
}

/// One row for each record of `FLOWS`.
pub fn rows<F: Family>(
    flows: &BTreeMap<FlowKey<F::Addr>, Flow<F::Addr>>,
    tables: &Tables<F>,
    now: u32,
) -> Vec<FlowRow> {
    flows
        .iter()
        .map(|(key, flow)| {
            let name = owner::<F>(flow, key.protocol, tables);
            let (namespace, name, port) = name.map_or_else(Default::default, |name| {
                (
                    name.service.namespace().to_owned(),
                    name.service.name().to_owned(),
                    name.port.to_string(),
                )
            });
            FlowRow {
                namespace,
                name,
                port,
                protocol: key.protocol.to_string(),
                family: F::NAME,
                client: socket::<F>(key.addr, key.port),
                frontend: socket::<F>(flow.frontend_addr, flow.frontend_port),
                backend: socket::<F>(flow.backend_addr, flow.backend_port),
                masquerade: masquerade::<F>(key, flow),
                state: FlowState::of(flow, key.protocol),
                idle_seconds: idle_seconds(flow.last_seen, now),
            }
        })
        .collect()
}

/// The Service port of the flow's frontend. The row that the flow names may
/// be another one's by now.
fn owner<'a, F: Family>(
    flow: &Flow<F::Addr>,
    protocol: Protocol,
    tables: &'a Tables<F>,
) -> Option<&'a ServicePortName> {
    let key = FrontendKey::new(flow.frontend_addr, flow.frontend_port, protocol);
    let frontend = tables.frontends.get(&key).or_else(|| {
        // Some address of this node, if it is a NodePort.
        let key = FrontendKey::node_port(flow.frontend_port, protocol);
        let frontend = tables.frontends.get(&key)?;
        (frontend.service == flow.service).then_some(frontend)
    })?;
    tables.names.get(&frontend.service)
}

/// Returns the source address and port that the backend sees, once they are chosen and
/// if they are not the client's own.
fn masquerade<F: Family>(key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) -> Option<SocketAddr> {
    if flow.masquerade_port != BePort::ZERO {
        Some(socket::<F>(flow.masquerade_addr, flow.masquerade_port))
    } else if flow.changed_port != BePort::ZERO {
        Some(socket::<F>(key.addr, flow.changed_port))
    } else {
        None
    }
}

fn socket<F: Family>(addr: F::Addr, port: BePort) -> SocketAddr {
    SocketAddr::new(F::ip(addr).into(), port.get())
}

/// Seconds since `last_seen`; both on the clock of flows.
pub(super) fn idle_seconds(last_seen: u32, now: u32) -> u64 {
    let age = now.wrapping_sub(last_seen);
    // A packet may have come since `now` was read.
    let age = if age < u32::MAX / 2 { age } else { 0 };
    (u64::from(age) << TICK_SHIFT) / 1_000_000_000
}

#[cfg(test)]
mod tests {
    use proxy_common::{
        family::{V4, V6},
        frontend::Frontend,
    };
    use rstest::rstest;

    use super::*;
    use crate::model::ObjectKey;

    fn flow<F: Family>(ip: F::Ip) -> Flow<F::Addr> {
        let addr = F::addr(ip);
        Flow {
            frontend_addr: addr,
            backend_addr: addr,
            masquerade_addr: addr,
            frontend_port: BePort::new(80),
            backend_port: BePort::new(8080),
            masquerade_port: BePort::ZERO,
            client_state: 0,
            backend_state: 0,
            service: 9,
            backend: 0,
            generation: 1,
            last_seen: 100,
            uplink: 0,
            flags: 0,
            highest: 0,
            changed_port: BePort::ZERO,
        }
    }

    fn row<F: Family>(ip: F::Ip, flow: Flow<F::Addr>, tables: &Tables<F>) -> FlowRow {
        let key = FlowKey::new(F::addr(ip), BePort::new(40000), Protocol::TCP);
        rows::<F>(&BTreeMap::from([(key, flow)]), tables, 110).remove(0)
    }

    fn names_the_owner<F: Family>(ip: F::Ip) {
        let mut tables = Tables::<F>::default();
        let other = ServicePortName {
            service: ObjectKey::new("default", "other"),
            port: "".into(),
            protocol: Protocol::TCP,
        };
        tables.names.insert(9, other.clone());
        let gone = row::<F>(ip, flow::<F>(ip), &tables);
        assert_eq!(gone.name, "", "the flow's row was given to another Service");
        assert_eq!((gone.idle_seconds, gone.masquerade), (10, None));

        let key = FrontendKey::new(F::addr(ip), BePort::new(80), Protocol::TCP);
        let frontend = Frontend {
            service: 9,
            flags: 0,
            kind: Frontend::CLUSTER_IP,
            tag: 0,
        };
        tables.frontends.insert(key, frontend);
        let row_of_node_port = |service| {
            let mut tables = tables.clone();
            let key = FrontendKey::node_port(BePort::new(80), Protocol::TCP);
            let frontend = Frontend {
                service,
                ..frontend
            };
            tables.frontends = BTreeMap::from([(key, frontend)]);
            row::<F>(ip, flow::<F>(ip), &tables).name
        };
        assert_eq!(row_of_node_port(9), "other");
        assert_eq!(row_of_node_port(8), "", "another Service's NodePort");

        let masqueraded = Flow {
            flags: Flow::<F::Addr>::MASQUERADE,
            masquerade_port: BePort::new(40000),
            ..flow::<F>(ip)
        };
        let shown = row::<F>(ip, masqueraded, &tables);
        assert_eq!(shown.cells()[0], "default/other");
        assert_eq!(shown.masquerade, Some(SocketAddr::new(ip.into(), 40000)));
    }

    #[test]
    fn names_the_owner_in_both_families() {
        names_the_owner::<V4>([10, 96, 0, 1].into());
        names_the_owner::<V6>([0xfd00, 0, 0, 0, 0, 0, 0, 1].into());
    }

    const BEYOND: u8 = state::SEEN | state::BEYOND_SYN;

    #[rstest]
    #[case::accepted_and_silent(Protocol::TCP, BEYOND, state::SEEN, "established")]
    #[case::established(Protocol::TCP, BEYOND, BEYOND, "established")]
    #[case::half_closed(Protocol::TCP, BEYOND | state::FIN, BEYOND, "established")]
    #[case::closed(Protocol::TCP, BEYOND | state::FIN, BEYOND | state::FIN, "closing")]
    #[case::reset(Protocol::TCP, state::SEEN, state::RST, "closing")]
    #[case::asked(Protocol::UDP, state::SEEN, 0, "unreplied")]
    #[case::answered(Protocol::UDP, state::SEEN, state::SEEN, "replied")]
    #[case::initiated(Protocol::SCTP, state::SEEN, state::SEEN, "opening")]
    #[case::associated(Protocol::SCTP, BEYOND, state::SEEN, "established")]
    #[case::aborted(Protocol::SCTP, BEYOND, state::RST, "closing")]
    fn states_are_those_of_the_sweeper(
        #[case] protocol: Protocol,
        #[case] client_state: u8,
        #[case] backend_state: u8,
        #[case] expected: &str,
    ) {
        let flow = Flow {
            client_state,
            backend_state,
            ..flow::<V4>([10, 0, 0, 1].into())
        };
        assert_eq!(FlowState::of(&flow, protocol).to_string(), expected);
    }

    #[test]
    fn idle_times_survive_a_wrap_of_the_clock_and_packets_of_just_now() {
        assert_eq!(idle_seconds(u32::MAX, 0), 1);
        assert_eq!(idle_seconds(5, 4), 0);
        assert_eq!(
            idle_seconds(0, 1000),
            1073,
            "a tick is a little longer than a second"
        );
    }
}
