//! Random steps.

use std::net::SocketAddr;

use fastrand::Rng;

use super::{
    mutate,
    step::{Step, What},
    world,
};
use crate::packet::{Body, Cast, FlowRecord, Hook, MAC_OTHER, Packet, chunk};

const HOOKS: [Hook; 6] = [
    Hook::Ingress,
    Hook::Egress,
    Hook::HostEgress,
    Hook::Through,
    Hook::IngressLayer3,
    Hook::EgressLayer3,
];
/// Payload lengths on and around multiples of powers of two.
const LENGTHS: [usize; 8] = [0, 1, 7, 8, 63, 64, 129, 1300];

/// Chooses things of one family.
pub(super) struct Generator<'a> {
    pub(super) rng: &'a mut Rng,
    pub(super) cast: Cast,
    /// The flows in the datapath's table.
    pub(super) flows: Vec<FlowRecord>,
}

impl Generator<'_> {
    pub(super) fn step(&mut self) -> Step {
        match self.rng.u8(..100) {
            0..30 => self.question(),
            30..40 => self.question_in_pieces(),
            40..43 => Step {
                what: What::Changes,
                packet: vec![self.rng.u8(..4)],
            },
            _ => self.any(),
        }
    }

    /// A well-formed packet that may open a flow.
    fn question(&mut self) -> Step {
        let host = self.rng.u8(..4) == 0;
        let mut client = self.choose(&world::clients(self.cast));
        if host {
            client = SocketAddr::new(self.cast.node(), self.rng.u16(1024..30_000));
        }
        let frontend = self.choose(&world::frontends(self.cast));
        let opener = match self.rng.u8(..3) {
            0 => Packet::syn(client, frontend),
            1 => Packet::udp(client, frontend).with_payload(self.payload()),
            _ => Packet::init(client, frontend),
        };
        Step {
            what: if host { What::HostAsks } else { What::Asks },
            packet: mutate::decorated(self.rng, opener).bytes(),
        }
    }

    fn question_in_pieces(&mut self) -> Step {
        let client = self.choose(&world::clients(self.cast));
        let frontend = self.choose(&world::frontends(self.cast));
        let length = self.rng.usize(49..150);
        let payload = (0..length).map(|_| self.rng.u8(..)).collect();
        Step {
            what: What::AsksInPieces,
            packet: Packet::udp(client, frontend).with_payload(payload).bytes(),
        }
    }

    /// Anything at any hook.
    fn any(&mut self) -> Step {
        let hook = self.choose(&HOOKS);
        let layer3 = matches!(hook, Hook::IngressLayer3 | Hook::EgressLayer3);
        let packet = match self.rng.u8(..6) {
            0 => self.error(),
            _ => self.plain(),
        };
        let mut packet = Packet {
            layer3,
            ..mutate::decorated(self.rng, packet)
        };
        if hook == Hook::HostEgress {
            packet.src.set_ip(self.cast.node());
        }
        match self.rng.u8(..16) {
            // Not for this host, nor routed by it.
            0 => (packet.mac_src, packet.mac_dst) = (MAC_OTHER, MAC_OTHER),
            1 => (packet.mac_src, packet.mac_dst) = (MAC_OTHER, [0xff; 6]),
            2 => packet.mac_src[0] |= 1,
            _ => {}
        }
        let mut bytes = packet.bytes();
        if self.rng.u8(..3) == 0 {
            mutate::damage(self.rng, &mut bytes, layer3);
        }
        Step {
            what: What::Meets(hook),
            packet: bytes,
        }
    }

    /// A packet between any two.
    fn plain(&mut self) -> Packet {
        let (src, dst) = self.ends();
        let payload = self.payload();
        let packet = match self.rng.u8(..12) {
            0 => Packet::syn(src, dst),
            1 => Packet::syn_ack(src, dst),
            2 => Packet::data(src, dst),
            3 => Packet::fin(src, dst),
            4 => Packet::rst(src, dst),
            5 => Packet::tcp(src, dst, self.rng.u8(..)),
            6 => Packet::udp(src, dst),
            7 => Packet {
                body: Body::UdpUnchecked,
                ..Packet::udp(src, dst)
            },
            8 => Packet::echo(src.ip(), dst.ip()),
            9 => Packet::icmp(src, dst, self.rng.u8(..), self.rng.u8(..), self.rng.u32(..)),
            10 => {
                let kind = self.choose(&[
                    chunk::DATA,
                    chunk::INIT,
                    chunk::INIT_ACK,
                    chunk::ABORT,
                    chunk::SHUTDOWN,
                    chunk::SHUTDOWN_COMPLETE,
                ]);
                let finished = self.rng.u8(..4) != 0;
                Packet {
                    body: Body::Sctp {
                        chunk: kind,
                        finished,
                    },
                    ..Packet::init(src, dst)
                }
            }
            _ => Packet::other(src, dst, self.rng.u8(..)),
        };
        packet.with_payload(payload)
    }

    /// An ICMP error about a packet between any two.
    fn error(&mut self) -> Packet {
        let (src, dst) = self.ends();
        let about = match self.rng.u8(..4) {
            0 => Packet::data(src, dst),
            1 => Packet::udp(src, dst).with_payload(self.payload()),
            2 => Packet::init(src, dst),
            _ => mutate::decorated(self.rng, Packet::data(src, dst)),
        };
        let about = Packet {
            fragment: None,
            ..about
        };
        let from = if self.rng.bool() {
            self.cast.router()
        } else {
            dst.ip()
        };
        let quoted = self.choose(&[0, 4, 7, 8, 12, 18, 20, 36]);
        match self.rng.u8(..5) {
            0 => Packet::too_big(from, &about, quoted),
            1 => Packet::port_unreachable(from, &about, quoted),
            2 => Packet::prohibited(from, &about, quoted),
            3 => Packet::time_exceeded(from, &about, quoted),
            _ => Packet::redirect(from, &about),
        }
    }

    /// Source and destination: of a flow that is there, or of any kind.
    fn ends(&mut self) -> (SocketAddr, SocketAddr) {
        let flows = std::mem::take(&mut self.flows);
        let followed = self.rng.choice(&flows).copied();
        self.flows = flows;
        if let Some(flow) = followed.filter(|_| self.rng.bool()) {
            let mut other_port = flow.backend;
            other_port.set_port(self.choose(&[53, 8080]));
            return match self.rng.u8(..7) {
                0 => (flow.client, flow.frontend),
                1 => (flow.backend, flow.client),
                2 if flow.masquerade.port() != 0 => (flow.backend, flow.masquerade),
                3 => (flow.between, flow.backend),
                4 => (flow.backend, flow.between),
                5 => (other_port, flow.client),
                _ => (flow.client, flow.backend),
            };
        }
        (self.end(), self.end())
    }

    fn end(&mut self) -> SocketAddr {
        let all = match self.rng.u8(..8) {
            0 | 1 => world::clients(self.cast),
            2 | 3 => world::frontends(self.cast),
            4 => world::refusing(self.cast),
            5 | 6 => world::backends(self.cast),
            _ => {
                let port = self.choose(&[0, 80, 8080, 40_000, world::NODE_PORT]);
                let special = world::special(self.cast).into_iter();
                special.map(|ip| SocketAddr::new(ip, port)).collect()
            }
        };
        self.choose(&all)
    }

    fn payload(&mut self) -> Vec<u8> {
        let length = self.choose(&LENGTHS);
        (0..length).map(|_| self.rng.u8(..)).collect()
    }

    fn choose<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.rng.usize(..all.len())].clone()
    }
}
