//! Bridges, whose packets pass the programs on their ports.

use super::link::{Link, MAX_NESTING};

/// Returns whether all that comes in by a device passes programs: it has them itself,
/// or all of the devices enslaved to it do, directly or further down.
pub(super) fn is_covered(
    ifindex: u32,
    links: &[Link],
    has_programs: &impl Fn(u32) -> bool,
) -> bool {
    covers(ifindex, links, has_programs, MAX_NESTING)
}

/// The depth is limited: a list that was read during changes may have devices in a circle.
fn covers(ifindex: u32, links: &[Link], has_programs: &impl Fn(u32) -> bool, depth: u32) -> bool {
    let mut ports = links
        .iter()
        .filter(|link| link.master == Some(ifindex))
        .map(|link| link.ifindex)
        .peekable();
    has_programs(ifindex)
        || depth > 0
            && ports.peek().is_some()
            && ports.all(|port| covers(port, links, has_programs, depth - 1))
}

#[cfg(test)]
mod tests {
    use super::{
        super::fixtures::{link, node},
        *,
    };

    /// Of a bridge all ports must have programs, and of a bond that is a port
    /// all of its devices.
    #[test]
    fn a_bridge_is_covered_by_its_ports() {
        let mut links = node();
        let enslaved = |ifindex, master| Link {
            master: Some(master),
            ..link(ifindex, "port")
        };
        links.extend([enslaved(8, 3), enslaved(9, 8), enslaved(10, 8)]);
        let covered = |ifindex, attached: &[u32]| {
            is_covered(ifindex, &links, &|ifindex| attached.contains(&ifindex))
        };
        assert!(covered(2, &[2]) && !covered(2, &[4]));
        assert!(covered(3, &[4, 9, 10]));
        assert!(!covered(3, &[4, 9]) && !covered(3, &[9, 10]));
        let circle = [enslaved(1, 2), enslaved(2, 1)];
        assert!(!is_covered(1, &circle, &|_| false));
    }
}
