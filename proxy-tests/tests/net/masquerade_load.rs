//! Many flows to one address and port of a backend, all of them masqueraded: a short
//! run of `cargo xtask bench masquerade`.

use std::time::Duration;

use anyhow::Result;
use proxy_tests::{
    Family,
    bench::masquerade::{self, Proxy, Stand},
    traffic::Transport,
};
use rstest::rstest;

const TIME: Duration = Duration::from_secs(2);
const RATE: u32 = 400;
const FLOWS: usize = 2000;

/// No connection, and none of many flows that are open at a time, is lost.
#[rstest]
fn one_backend_serves_many_masqueraded_flows(
    #[values(Proxy::Tandem, Proxy::Netfilter)] proxy: Proxy,
) -> Result<()> {
    Stand::build()?.with(proxy, |stand| {
        for family in Family::BOTH {
            let short = masquerade::connect(stand, family, TIME, Some(RATE))?;
            assert!(short.offered > 100, "{family}: {short:?}");
            assert_eq!(short.served, short.offered, "{family}: {short:?}");
            for transport in [Transport::Udp, Transport::Tcp] {
                for round in masquerade::hold(stand, family, transport, FLOWS)? {
                    assert_eq!(round.answered, FLOWS, "{family} {transport:?}: {round:?}");
                }
            }
        }
        Ok(())
    })
}
