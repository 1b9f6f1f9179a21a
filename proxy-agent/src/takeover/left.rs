//! Which flows of kube-proxy are left, and what is to be done about the others.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    ops::Add,
};

use proxy_common::{
    family::Family,
    foreign::{Foreign, Tuple},
    net::{BePort, Protocol},
};

use super::connections::Translated;

/// Numbers of flows, by family and protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Left(BTreeMap<(&'static str, Protocol), usize>);

impl Left {
    /// Those of a family whose packets are these.
    pub fn of<'a, F: Family>(
        entries: impl IntoIterator<Item = (&'a Tuple<F::Addr>, &'a Foreign)>,
    ) -> Self {
        let mut left = Self::default();
        for (tuple, value) in entries {
            if value.direction == Foreign::REQUEST {
                left.count::<F>(tuple.protocol);
            }
        }
        left
    }

    pub fn count<F: Family>(&mut self, protocol: Protocol) {
        *self.0.entry((F::NAME, protocol)).or_default() += 1;
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Add for Left {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        for (key, number) in other.0 {
            *self.0.entry(key).or_default() += number;
        }
        self
    }
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total: usize = self.0.values().sum();
        write!(f, "{total} flows")?;
        let parts = self.0.iter();
        let parts: Vec<_> = parts
            .map(|((family, protocol), number)| format!("{family} {protocol} {number}"))
            .collect();
        if parts.is_empty() {
            Ok(())
        } else {
            write!(f, " ({})", parts.join(", "))
        }
    }
}

/// What is known when netfilter has listed its connections.
pub(super) struct Judge<'a, F: Family> {
    /// `FOREIGN` as it was before.
    pub known: &'a HashMap<Tuple<F::Addr>, Foreign>,
    /// What the last list lacked. A list may lack a connection while netfilter's table
    /// grows, so one is not enough.
    pub missing: &'a HashSet<Tuple<F::Addr>>,
    /// Flows are entered that are not known yet.
    pub admits: bool,
    /// What was entered later may not have come to netfilter before the list began.
    pub expired_before: u32,
}

/// What is to be done, in this order.
pub(super) struct Changes<F: Family> {
    pub insert: Vec<(Tuple<F::Addr>, u32)>,
    pub remove: Vec<Tuple<F::Addr>>,
    /// Connections that netfilter is to forget.
    pub end: Vec<Translated<F>>,
    pub missing: HashSet<Tuple<F::Addr>>,
    pub left: Left,
}

impl<F: Family> Judge<'_, F> {
    /// Judges a list. `service` tells what a request is for, and `serves` whether a
    /// backend serves that.
    pub fn judge(
        &self,
        found: &[Translated<F>],
        service: impl Fn(&Tuple<F::Addr>) -> Option<u32>,
        serves: impl Fn(u32, (F::Addr, BePort)) -> bool,
    ) -> Changes<F> {
        let mut changes = Changes {
            insert: Vec::new(),
            remove: Vec::new(),
            end: Vec::new(),
            missing: HashSet::new(),
            left: Left::default(),
        };
        let mut live = HashSet::new();
        for flow in found {
            let is_known = self.known.contains_key(&flow.request);
            if !is_known && !self.admits {
                continue;
            }
            let Some(service) = service(&flow.request) else {
                continue;
            };
            // A UDP client would talk to nobody, as nothing tells it to stop (S77).
            if flow.protocol == Protocol::UDP && !serves(service, flow.backend()) {
                changes.end.push(*flow);
                continue;
            }
            let mut keep = |tuple, direction| {
                live.insert(tuple);
                if !self.known.contains_key(&tuple) {
                    changes.insert.push((tuple, direction));
                }
            };
            keep(flow.request, Foreign::REQUEST);
            if flow.is_masqueraded() {
                keep(flow.reply, Foreign::REPLY);
            }
            changes.left.count::<F>(flow.protocol);
        }
        let ended: HashSet<_> = changes.end.iter().map(|flow| flow.request).collect();
        for (tuple, value) in self.known {
            if live.contains(tuple) {
                continue;
            }
            let is_old = value
                .entered
                .wrapping_sub(self.expired_before)
                .cast_signed()
                < 0;
            if ended.contains(tuple) || self.missing.contains(tuple) {
                changes.remove.push(*tuple);
            } else {
                if is_old {
                    changes.missing.insert(*tuple);
                }
                if value.direction == Foreign::REQUEST {
                    changes.left.count::<F>(tuple.protocol);
                }
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proxy_common::family::{V4, V6};

    use super::*;
    use crate::sys::netfilter::conntrack::{Connection, Ends};

    const NOW: u32 = 100;

    /// A flow of client number `client`, whose address the backend sees, or the node's.
    fn flow<F: Family>(client: u16, protocol: Protocol, masqueraded: bool) -> Translated<F> {
        let ip = |v4: &str, v6: &str| {
            let ip: IpAddr = if F::NAME == "IPv4" { v4 } else { v6 }
                .parse()
                .expect("an address");
            ip
        };
        let source = ip("10.244.1.2", "fd00:1::2");
        let connection = Connection {
            protocol: protocol.0,
            original: Ends {
                source,
                destination: ip("10.96.0.10", "fd00:96::10"),
                source_port: client,
                destination_port: 80,
            },
            reply: Ends {
                source: ip("10.244.2.3", "fd00:2::3"),
                destination: if masqueraded {
                    ip("192.168.7.1", "fd00:7::1")
                } else {
                    source
                },
                source_port: 8080,
                destination_port: client,
            },
            is_over: false,
        };
        let flow = Translated::of(&connection).expect("translated");
        assert_eq!(Translated::<F>::of(&over(connection)), None);
        assert_eq!(Translated::<F>::of(&straight(connection)), None);
        flow
    }

    fn over(connection: Connection) -> Connection {
        Connection {
            is_over: true,
            ..connection
        }
    }

    fn straight(mut connection: Connection) -> Connection {
        connection.reply.source = connection.original.destination;
        connection.reply.source_port = connection.original.destination_port;
        connection
    }

    struct Node<F: Family> {
        known: HashMap<Tuple<F::Addr>, Foreign>,
        missing: HashSet<Tuple<F::Addr>>,
        serves: bool,
    }

    impl<F: Family> Node<F> {
        /// Goes one round; returns what is left, and what netfilter is to forget.
        fn round(&mut self, found: &[Translated<F>], admits: bool) -> (String, usize) {
            let judge = Judge {
                known: &self.known,
                missing: &self.missing,
                admits,
                expired_before: NOW - 3,
            };
            let changes = judge.judge(found, |_| Some(1), |_, _| self.serves);
            for (tuple, direction) in changes.insert {
                let entered = NOW;
                let value = Foreign { entered, direction };
                self.known.insert(tuple, value);
            }
            for tuple in changes.remove {
                self.known.remove(&tuple).expect("known");
            }
            self.missing = changes.missing;
            (changes.left.to_string(), changes.end.len())
        }

        fn age(&mut self) {
            for value in self.known.values_mut() {
                value.entered = value.entered.wrapping_sub(10);
            }
        }
    }

    fn node<F: Family>() -> Node<F> {
        Node {
            known: HashMap::new(),
            missing: HashSet::new(),
            serves: true,
        }
    }

    fn flows_are_known_to_their_end<F: Family>() {
        let tcp = flow::<F>(1, Protocol::TCP, false);
        let udp = flow::<F>(2, Protocol::UDP, true);
        let mut node = node::<F>();
        let both = format!("2 flows ({0} TCP 1, {0} UDP 1)", F::NAME);
        assert_eq!(node.round(&[tcp, udp], true).0, both);
        assert_eq!(node.known.len(), 3, "the masqueraded one has two tuples");
        // One that comes later is none of these.
        let late = flow::<F>(3, Protocol::TCP, false);
        assert_eq!(node.round(&[tcp, udp, late], false).0, both);
        node.age();
        // One list without it is not enough.
        assert_eq!(node.round(&[udp], false).0, both);
        let one = format!("1 flows ({} UDP 1)", F::NAME);
        assert_eq!(node.round(&[udp], false).0, one);
        node.round(&[], false);
        assert_eq!(node.round(&[], false).0, "0 flows");
        assert!(node.known.is_empty());
    }

    #[test]
    fn flows_are_known_to_their_end_in_both_families() {
        flows_are_known_to_their_end::<V4>();
        flows_are_known_to_their_end::<V6>();
    }

    /// The program has entered it, and its packet is on the way to netfilter.
    #[test]
    fn what_has_just_been_entered_is_not_missed() {
        let flow = flow::<V6>(1, Protocol::UDP, true);
        let mut node = node::<V6>();
        let value = Foreign {
            entered: NOW,
            direction: Foreign::REQUEST,
        };
        node.known.insert(flow.request, value);
        for _ in 0..3 {
            node.round(&[], false);
        }
        assert_eq!(node.known.len(), 1);
        node.round(&[flow], false);
        assert_eq!(node.known.len(), 2, "its reply tuple, too");
    }

    #[test]
    fn udp_leaves_a_backend_that_is_gone_and_tcp_stays() {
        let tcp = flow::<V4>(1, Protocol::TCP, false);
        let udp = flow::<V4>(2, Protocol::UDP, true);
        let mut node = node::<V4>();
        node.round(&[tcp, udp], true);
        node.serves = false;
        assert_eq!(
            node.round(&[tcp, udp], false),
            ("1 flows (IPv4 TCP 1)".to_owned(), 1)
        );
        assert!(!node.known.contains_key(&udp.request));
    }
}
