//! Devices that could not be described or given their programs.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Time after which a device that the kernel calls missing, but still lists, counts as
/// refused. Pods' devices often go while they are looked at.
const GOING: Duration = Duration::from_mins(1);

#[derive(Debug)]
struct Refusal {
    message: String,
    since: Instant,
    told: bool,
}

/// The refused devices, by ifindex, and what was said of them.
#[derive(Debug, Default)]
pub(super) struct Refused(BTreeMap<u32, Refusal>);

impl Refused {
    /// Notes that a device was refused, perhaps because it is gone. Returns whether that
    /// is to be told: once for each message.
    pub(super) fn note(
        &mut self,
        ifindex: u32,
        message: &str,
        is_gone: bool,
        now: Instant,
    ) -> bool {
        let fresh = || Refusal {
            message: message.to_owned(),
            since: now,
            told: false,
        };
        let refusal = self.0.entry(ifindex).or_insert_with(fresh);
        if refusal.message != message {
            *refusal = fresh();
        }
        let tell = !refusal.told && (!is_gone || now.duration_since(refusal.since) >= GOING);
        refusal.told |= tell;
        tell
    }

    /// Forgets a device. Returns whether it was refused.
    pub(super) fn remove(&mut self, ifindex: u32) -> bool {
        self.0.remove(&ifindex).is_some()
    }

    pub(super) fn contains(&self, ifindex: u32) -> bool {
        self.0.contains_key(&ifindex)
    }

    pub(super) fn retain(&mut self, keep: impl Fn(u32) -> bool) {
        self.0.retain(|ifindex, _| keep(*ifindex));
    }

    /// The devices that were told of, and what keeps them from being served.
    pub(super) fn told(&self) -> impl Iterator<Item = (u32, &str)> {
        let told = self.0.iter().filter(|(_, refusal)| refusal.told);
        told.map(|(ifindex, refusal)| (*ifindex, &*refusal.message))
    }

    pub(super) fn devices(&self) -> impl Iterator<Item = &u32> {
        self.0.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns whether each refusal of one device, at the given seconds, is to be logged.
    fn told(refused: &mut Refused, message: &str, is_gone: bool, seconds: [u64; 4]) -> [bool; 4] {
        let start = Instant::now();
        seconds.map(|second| refused.note(7, message, is_gone, start + Duration::from_secs(second)))
    }

    #[test]
    fn a_refusal_is_told_once() {
        let mut refused = Refused::default();
        let busy = told(&mut refused, "busy", false, [0, 5, 60, 65]);
        assert_eq!(busy, [true, false, false, false]);
        let full = told(&mut refused, "full", false, [0, 5, 60, 65]);
        assert_eq!(full, [true, false, false, false]);
        assert!(refused.remove(7));
        assert!(told(&mut refused, "full", false, [0; 4])[0]);
    }

    #[test]
    fn a_device_that_does_not_go_is_told_once_after_a_minute() {
        let mut refused = Refused::default();
        let gone = told(&mut refused, "no such device", true, [0, 5, 55, 59]);
        assert_eq!(gone, [false; 4]);
        let still = told(&mut refused, "no such device", true, [60, 65, 120, 600]);
        assert_eq!(still, [true, false, false, false]);
    }

    #[test]
    fn a_device_that_goes_is_not_told() {
        let mut refused = Refused::default();
        assert!(!refused.note(7, "no such device", true, Instant::now()));
        refused.retain(|ifindex| ifindex != 7);
        assert!(!refused.contains(7));
        assert_eq!(refused.devices().count(), 0);
    }
}
