//! What the operator wants: a link below the bpf root, which the agent follows, and the next
//! one, too.

use std::{fs, io, os::unix::fs::symlink, path::PathBuf};

use crate::dataplane::pins::Pins;

/// The direction to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Services are ours.
    Forward,
    /// Services are kube-proxy's.
    Back,
}

/// A symbolic link with a word for its text: what a bpf file system can hold.
const LINK: &str = "takeover";
const BACK: &str = "back";

fn path(pins: &Pins) -> PathBuf {
    pins.version().join(LINK)
}

/// The order that was given last.
pub fn read(pins: &Pins) -> Order {
    match fs::read_link(path(pins)) {
        Ok(text) if text.as_os_str() == BACK => Order::Back,
        _ => Order::Forward,
    }
}

/// Gives an order.
pub fn give(pins: &Pins, order: Order) -> io::Result<()> {
    let result = match order {
        Order::Back => symlink(BACK, path(pins)),
        Order::Forward => fs::remove_file(path(pins)),
    };
    match result {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound
            ) && pins.version().exists() =>
        {
            Ok(())
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_holds_until_the_next_one() {
        let root = tempfile::tempdir().expect("a folder");
        let pins = Pins::new(root.path());
        assert_eq!(read(&pins), Order::Forward);
        give(&pins, Order::Back).expect_err("no tables");
        fs::create_dir_all(pins.version()).expect("a folder");
        for order in [Order::Back, Order::Back, Order::Forward, Order::Forward] {
            give(&pins, order).expect("given");
            assert_eq!(read(&pins), order);
        }
    }
}
