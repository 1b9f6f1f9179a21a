//! How far a take-over has come.

use proxy_common::config::Config;

use super::order::Order;

/// A phase, which the programs know by two flags of `CONFIG`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No flow of kube-proxy is known: everything is ours.
    Off,
    /// All flows are kube-proxy's, and those that pass are noted.
    Hold,
    /// New flows are ours, and those of kube-proxy go on.
    TakeOver,
    /// Open flows of ours go on, new ones are kube-proxy's.
    GiveBack,
}

impl Phase {
    const FLAGS: u32 = Config::LEAVE_NEW | Config::FOREIGN;

    /// The phase that the programs know.
    pub fn of(flags: u32) -> Self {
        match flags & Self::FLAGS {
            0 => Self::Off,
            Config::FOREIGN => Self::TakeOver,
            Config::LEAVE_NEW => Self::GiveBack,
            _ => Self::Hold,
        }
    }

    /// Flags that tell this phase, and are otherwise as they were.
    pub fn set(self, flags: u32) -> u32 {
        let own = match self {
            Self::Off => 0,
            Self::Hold => Self::FLAGS,
            Self::TakeOver => Config::FOREIGN,
            Self::GiveBack => Config::LEAVE_NEW,
        };
        flags & !Self::FLAGS | own
    }

    /// The phase that an order leads to from this one. On the way forward again, there are
    /// flows to spare if kube-proxy has rules.
    #[must_use]
    pub fn ordered(self, order: Order, has_rules: impl FnOnce() -> bool) -> Self {
        match (self, order) {
            (_, Order::Back) => Self::GiveBack,
            (Self::GiveBack, Order::Forward) if has_rules() => Self::Hold,
            (Self::GiveBack, Order::Forward) => Self::Off,
            (phase, Order::Forward) => phase,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Phase; 4] = [Phase::Off, Phase::Hold, Phase::TakeOver, Phase::GiveBack];

    #[test]
    fn flags_tell_the_phase_and_nothing_else() {
        for phase in ALL {
            for before in [0, u32::MAX, Config::SOCKETS_HOST] {
                let flags = phase.set(before);
                assert_eq!(Phase::of(flags), phase);
                assert_eq!(flags & !Phase::FLAGS, before & !Phase::FLAGS);
            }
        }
    }

    #[test]
    fn orders_lead_back_and_forward() {
        for phase in ALL {
            assert_eq!(phase.ordered(Order::Back, || true), Phase::GiveBack);
            if phase != Phase::GiveBack {
                assert_eq!(phase.ordered(Order::Forward, || true), phase);
            }
        }
        let back = Phase::GiveBack;
        assert_eq!(back.ordered(Order::Forward, || true), Phase::Hold);
        assert_eq!(back.ordered(Order::Forward, || false), Phase::Off);
    }
}
