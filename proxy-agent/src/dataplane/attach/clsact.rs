//! Filters of the clsact qdisc.
//!
//! Ours have a fixed priority and handle, and the name of one of our programs.
//! That makes them known without their tables, which may be gone, and without
//! asking for the programs themselves, which takes more privileges than the
//! agent has. A filter of somebody else is never replaced or removed.

use std::{io, mem};

use aya::programs::{
    Link as _, SchedClassifier,
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
};
use futures::TryStreamExt as _;
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption};
use rtnetlink::new_connection;

use crate::dataplane::{
    attach::{AttachError, Hook, Target},
    load::HOOK_PROGRAMS,
};

/// Priority and handle of our filters: first in line, always the same.
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0, 0x7a0d);

/// A BPF filter on a device's hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Name that it was given when it was attached; empty if none was.
    pub name: String,
    /// Id of its program; `None` for classic BPF.
    pub program: Option<u32>,
    pub priority: u16,
    pub handle: u32,
}

impl Filter {
    /// Returns whether an agent of ours attached it, this one or an earlier one.
    pub fn is_ours(&self) -> bool {
        self.is_in_our_place() && HOOK_PROGRAMS.contains(&self.name.as_str())
    }

    fn is_in_our_place(&self) -> bool {
        (self.priority, self.handle) == (PRIORITY, HANDLE.into())
    }

    /// The filter a message of netlink is about, if it is a BPF filter and
    /// not the head of a list of them, which has no handle.
    fn read(message: &TcMessage) -> Option<Self> {
        let handle = message.header.handle;
        let handle = u32::from(handle.major) << 16 | u32::from(handle.minor);
        let is_bpf =
            |attribute: &TcAttribute| matches!(attribute, TcAttribute::Kind(kind) if kind == "bpf");
        if handle == 0 || !message.attributes.iter().any(is_bpf) {
            return None;
        }
        let options = message
            .attributes
            .iter()
            .filter_map(|attribute| match attribute {
                TcAttribute::Options(options) => Some(options),
                _ => None,
            });
        let mut filter = Self {
            name: String::new(),
            program: None,
            priority: u16::try_from(message.header.info >> 16).unwrap_or_default(),
            handle,
        };
        for option in options.flatten() {
            match option {
                TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => filter.program = Some(*id),
                TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => filter.name.clone_from(name),
                _ => {}
            }
        }
        Some(filter)
    }
}

/// Lists filters, attaches and removes ours.
#[derive(Clone, Debug)]
pub struct Filters {
    netlink: rtnetlink::Handle,
}

impl Filters {
    /// Opens a connection on the current runtime.
    pub fn open() -> io::Result<Self> {
        let (connection, netlink, _) = new_connection()?;
        tokio::spawn(connection);
        Ok(Self { netlink })
    }

    /// The BPF filters of a device's hook, in the order they run.
    pub async fn list(&self, ifindex: u32, hook: Hook) -> Result<Vec<Filter>, rtnetlink::Error> {
        let mut filters = self.netlink.traffic_filter(ifindex.cast_signed());
        let request = match hook {
            Hook::Ingress => filters.get().ingress(),
            Hook::Egress => filters.get().egress(),
        };
        let messages: Vec<_> = request.execute().try_collect().await?;
        Ok(messages.iter().filter_map(Filter::read).collect())
    }

    /// Attaches a program, or puts it in the place of ours or an earlier
    /// agent's; returns whether there was one.
    pub(super) async fn attach(
        &self,
        program: &mut SchedClassifier,
        hook: Hook,
        target: &Target<'_>,
    ) -> Result<bool, AttachError> {
        match tc::qdisc_add_clsact(target.name) {
            Ok(()) => {}
            Err(error) if is_already_there(&error) => {}
            Err(error) => return Err(AttachError::Qdisc(error)),
        }
        let filters = self.list(target.ifindex, hook).await;
        let filters = filters.map_err(AttachError::List)?;
        let place = filters.iter().find(|filter| filter.is_in_our_place());
        let id = match place {
            Some(filter) if filter.is_ours() => program.attach_to_link(ours(target, hook)?),
            Some(filter) => return Err(AttachError::Taken(filter.name.clone())),
            // Refused by the kernel if somebody takes the place meanwhile.
            None => program.attach_with_options(
                target.name,
                hook.attach_type(),
                TcAttachOptions::Netlink(NlOptions {
                    priority: PRIORITY,
                    handle: HANDLE,
                    ..NlOptions::default()
                }),
            ),
        };
        let link = id
            .and_then(|id| program.take_link(id))
            .map_err(AttachError::Attach)?;
        // Dropping it would detach the program.
        mem::forget(link);
        Ok(place.is_some())
    }

    /// Removes our filters from both hooks of a device. The qdisc stays:
    /// others may use it.
    pub async fn remove_ours(&self, target: &Target<'_>) -> Result<(), AttachError> {
        for hook in Hook::BOTH {
            let filters = self.list(target.ifindex, hook).await;
            let filters = filters.map_err(AttachError::List)?;
            if filters.iter().any(Filter::is_ours) {
                ours(target, hook)?.detach().map_err(AttachError::Detach)?;
            }
        }
        Ok(())
    }
}

/// The filter in our place of a device's hook.
fn ours(target: &Target<'_>, hook: Hook) -> Result<SchedClassifierLink, AttachError> {
    SchedClassifierLink::attached(target.name, hook.attach_type(), PRIORITY, HANDLE, None)
        .map_err(|error| AttachError::Attach(tc::TcError::IoError(error).into()))
}

/// Returns whether adding a qdisc failed because it is there.
fn is_already_there(error: &tc::TcError) -> bool {
    match error {
        tc::TcError::AlreadyAttached => true,
        tc::TcError::NetlinkError(error) => error.raw_os_error() == Some(libc::EEXIST),
        tc::TcError::NulError(_)
        | tc::TcError::IoError(_)
        | tc::TcError::InvalidTcxAttach(_)
        | tc::TcError::InvalidLinkOperation => false,
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::tc::TcHeader;
    use rstest::rstest;

    use super::*;

    fn message(handle: u32, options: Vec<TcOption>) -> TcMessage {
        let mut message = TcMessage::default();
        message.header = TcHeader {
            handle: netlink_packet_route::tc::TcHandle::from(handle),
            info: 1 << 16 | 0x0300,
            ..TcHeader::default()
        };
        message.attributes = vec![
            TcAttribute::Kind("bpf".to_owned()),
            TcAttribute::Options(options),
        ];
        message
    }

    #[test]
    fn filters_with_a_program_are_read() {
        let program = vec![
            TcOption::Bpf(TcFilterBpfOption::ProgName("ingress".to_owned())),
            TcOption::Bpf(TcFilterBpfOption::ProgId(7)),
        ];
        let found = Filter::read(&message(0x7a0d, program));
        let expected = Filter {
            name: "ingress".to_owned(),
            program: Some(7),
            priority: 1,
            handle: 0x7a0d,
        };
        assert_eq!(found, Some(expected));
        let classic = Filter::read(&message(1, Vec::new())).expect("a filter");
        assert_eq!((classic.program, classic.is_ours()), (None, false));
        let head_of_the_list = message(0, Vec::new());
        assert_eq!(Filter::read(&head_of_the_list), None);
    }

    #[rstest]
    #[case::ours("ingress", 1, 0x7a0d, true)]
    #[case::ours_without_ethernet("egress_l3", 1, 0x7a0d, true)]
    #[case::in_our_place("cil_from_netdev", 1, 0x7a0d, false)]
    #[case::another_priority("ingress", 2, 0x7a0d, false)]
    #[case::another_handle("ingress", 1, 1, false)]
    fn ours_have_our_place_and_name(
        #[case] name: &str,
        #[case] priority: u16,
        #[case] handle: u32,
        #[case] expected: bool,
    ) {
        let filter = Filter {
            name: name.to_owned(),
            program: None,
            priority,
            handle,
        };
        assert_eq!(filter.is_ours(), expected);
    }
}
