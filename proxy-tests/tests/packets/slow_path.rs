//! The way from the attached programs to those of the slow path.

use std::collections::BTreeMap;

use proxy_tests::{
    Family,
    packet::{Cast, Datapath, Hook, Packet, ServicePort, Verdict},
};
use rstest::rstest;

/// Packets that need a missing slow path are dropped, with a counter of their own; others
/// go on.
#[rstest]
fn a_missing_slow_path_is_counted(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::with_sizes(Datapath::SIZES);
    datapath.serve(&ServicePort::tcp(cast.vip(), &[cast.endpoint(1)]));
    datapath.remove_slow_path();
    let missing = BTreeMap::from([("slow_path_missing", 1)]);
    for hook in [Hook::Ingress, Hook::Egress] {
        let ran = datapath.run(hook, &Packet::syn(cast.pod(), cast.vip()));
        assert_eq!((ran.verdict, ran.counted), (Verdict::Drop, missing.clone()));
        let ran = datapath.run(hook, &Packet::syn(cast.pod(), cast.stranger()));
        assert_eq!((ran.verdict, ran.counted), (Verdict::Next, BTreeMap::new()));
    }
}
