//! The number of flows that a client may have in a table that is nearly full.
//!
//! Max-min fairness: a client with less than the share keeps all of its flows, and the
//! room that it leaves is divided among the others. Clients come in rows of about one
//! size, so the share may be up to a half below what would just fit; never above.

use proxy_common::share::{ClientSizes, Share};

/// The share by which the clients' flows fit `room`. The largest clients
/// are taken to want all they can have. At least one flow.
pub(super) fn fair_share(sizes: &ClientSizes, room: u32) -> Share {
    let mut others = 0_u64;
    let mut clients: u64 = sizes.iter().map(|size| u64::from(size.clients)).sum();
    let mut share = if clients == 0 { u64::from(room) } else { 1 };
    // Every row may be the first whose clients are held to the share: those below
    // have what they have. It fits each time, so the best one is taken.
    for size in sizes {
        if clients == 0 {
            break;
        }
        share = share.max(u64::from(room).saturating_sub(others) / clients);
        others += u64::from(size.flows);
        clients = clients.saturating_sub(size.clients.into());
    }
    Share::try_from(share).unwrap_or(Share::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};
    use proxy_common::share::{ClientSize, ROWS, row};
    use rstest::rstest;

    use super::*;

    fn sizes(flows: &[u32]) -> ClientSizes {
        let mut sizes = [ClientSize::default(); ROWS];
        for flows in flows {
            let size = &mut sizes[row(*flows)];
            size.clients += 1;
            size.flows += flows;
        }
        sizes
    }

    #[rstest]
    #[case::nobody(&[], 896)]
    #[case::one_with_all(&[1024], 896)]
    #[case::one_with_little(&[10], 896)]
    #[case::small_ones_beside_a_large_one(&[1, 1, 10, 1000], 884)]
    #[case::equal_ones(&[256, 256, 256, 256], 224)]
    #[case::two_large_ones(&[10, 600, 700], 443)]
    #[case::one_below_the_equal_part(&[100, 500, 500], 398)]
    #[case::more_clients_than_room(&[1; 2000], 1)]
    fn the_share_leaves_others_theirs(#[case] flows: &[u32], #[case] expected: u32) {
        assert_eq!(fair_share(&sizes(flows), 896), expected);
    }

    /// The largest share that fits, found by trying.
    fn exact(flows: &[u32], room: u32) -> u32 {
        let held = |share: u32| -> u64 { flows.iter().map(|&one| u64::from(one.min(share))).sum() };
        let (mut low, mut high) = (0, room);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if held(middle) <= room.into() {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        low
    }

    proptest! {
        #[test]
        fn what_clients_may_have_fits(
            flows in vec(1_u32..5000, 1..200),
            room in 200_u32..100_000,
        ) {
            let share = fair_share(&sizes(&flows), room);
            let held: u64 = flows.iter().map(|&one| u64::from(one.min(share))).sum();
            prop_assert!(held <= room.into(), "{held} held at {share}");
            let count = u32::try_from(flows.len()).expect("few");
            prop_assert!(share >= room / count, "{share} is less than an equal part");
            let total: u64 = flows.iter().map(|&one| u64::from(one)).sum();
            if total > room.into() {
                prop_assert!(share >= exact(&flows, room) / 2, "{share}");
            }
        }
    }
}
