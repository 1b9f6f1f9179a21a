//! The agent listens to netlink while others use it, too.

use std::{
    io,
    os::fd::AsRawFd as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Result, ensure};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, send, socket};
use proxy_tests::{AgentOptions, ECHO_PORT, Family, Lab, Topology, traffic::ask_tcp};

/// Sequence numbers of others' requests: those that the agent uses, too, as
/// both begin to count at one.
const SEQUENCES: std::ops::Range<u32> = 1..200;

/// As many as a node full of pods has: listing them takes a while.
const DEVICES: u32 = 100;

/// A notification that the kernel sends to all listeners carries the number of the
/// request that caused it, whoever made that. It is no answer to the agent's request of
/// the same number, and no list of devices or addresses ends with it.
#[test]
fn requests_of_others_are_not_taken_for_answers() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    let service = lab.serve([&backend])?;
    let devices = (0..DEVICES).map(|number| format!("link add device{number} type bridge\n"));
    node.ip(&devices.collect::<String>())?;
    let agents = lab.start_agents(&AgentOptions::default())?;

    let done = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let others = scope.spawn(|| {
            node.run(|| {
                while !done.load(Ordering::Relaxed) {
                    lab.families()
                        .list()
                        .iter()
                        .try_for_each(|&family| ask(family))?;
                }
                io::Result::Ok(())
            })
        });
        // Each makes the agent list its devices and addresses.
        let added =
            (0..40).try_for_each(|round| node.ip(&format!("addr add 192.0.2.{round}/32 dev eth0")));
        done.store(true, Ordering::Relaxed);
        others.join().expect("no panic")?;
        added
    })?;
    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        client.run(|| ask_tcp(frontend))?;
    }
    let log = agents[0].log();
    ensure!(!log.contains("cannot follow"), "{log}");
    Ok(())
}

/// Adds and removes a route with each of the sequence numbers.
fn ask(family: Family) -> io::Result<()> {
    const NEW_ROUTE: u16 = 24;
    const DELETE_ROUTE: u16 = 25;
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    for sequence in SEQUENCES {
        for kind in [NEW_ROUTE, DELETE_ROUTE] {
            let request = request(kind, sequence, family);
            send(netlink.as_raw_fd(), &request, MsgFlags::empty())?;
        }
    }
    Ok(())
}

/// A request about a blackhole route of the main table.
fn request(kind: u16, sequence: u32, family: Family) -> Vec<u8> {
    const CREATE: u16 = 0x400;
    const REQUEST: u16 = 1;
    const MAIN: u8 = 254;
    const STATIC: u8 = 4;
    const BLACKHOLE: u8 = 6;
    const DESTINATION: u16 = 1;
    let (number, destination): (u8, Vec<u8>) = match family {
        Family::V4 => (2, vec![198, 51, 100, 1]),
        Family::V6 => (
            10,
            [0x20, 0x01, 0x0d, 0xb8]
                .into_iter()
                .chain([1; 12])
                .collect(),
        ),
    };
    let bits = u8::try_from(destination.len() * 8).expect("an address");
    let size = |length: usize| u16::try_from(length).expect("small").to_ne_bytes();
    let mut body = vec![number, bits, 0, 0, MAIN, STATIC, 0, BLACKHOLE, 0, 0, 0, 0];
    body.extend(size(4 + destination.len()));
    body.extend(DESTINATION.to_ne_bytes());
    body.extend(destination);
    let length = u32::try_from(16 + body.len()).expect("small");
    let mut request = length.to_ne_bytes().to_vec();
    request.extend(kind.to_ne_bytes());
    request.extend((REQUEST | CREATE).to_ne_bytes());
    request.extend(sequence.to_ne_bytes());
    request.extend([0; 4]);
    request.extend(body);
    request
}
