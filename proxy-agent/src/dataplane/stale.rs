//! The sockets that are connected to a UDP backend which serves no more, as the
//! program `stale_sockets` finds them.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd as _, OwnedFd},
};

use aya::{
    Btf, BtfError,
    maps::Map,
    programs::{Iter, ProgramError},
};
use proxy_common::socket::StaleSocket;

use crate::dataplane::{bpf, load::Loaded};

const PROGRAM: &str = "stale_sockets";
const RECORD: usize = size_of::<StaleSocket>();

/// Stale sockets cannot be found on this kernel.
#[derive(Debug, thiserror::Error)]
pub enum StaleError {
    #[error("the eBPF object has no {0}")]
    Missing(&'static str),
    #[error("read the kernel's BTF")]
    Btf(#[source] BtfError),
    #[error("load eBPF program {PROGRAM}")]
    Load(#[source] ProgramError),
    #[error("join the iterator and table SOCKETS")]
    Link(#[source] io::Error),
}

/// Looks through `SOCKETS`, in all network namespaces.
pub struct StaleSockets {
    link: OwnedFd,
}

impl StaleSockets {
    /// Makes the iterator.
    pub fn open(loaded: &mut Loaded) -> Result<Self, StaleError> {
        let ebpf = &mut loaded.ebpf;
        let btf = Btf::from_sys_fs().map_err(StaleError::Btf)?;
        let program: &mut Iter = ebpf
            .program_mut(PROGRAM)
            .and_then(|program| program.try_into().ok())
            .ok_or(StaleError::Missing(PROGRAM))?;
        program
            .load("bpf_sk_storage_map", &btf)
            .map_err(StaleError::Load)?;
        let program: &Iter = ebpf
            .program(PROGRAM)
            .and_then(|program| program.try_into().ok())
            .ok_or(StaleError::Missing(PROGRAM))?;
        let Some(Map::SkStorage(map)) = ebpf.map("SOCKETS") else {
            return Err(StaleError::Missing("SOCKETS"));
        };
        let program = program.fd().map_err(StaleError::Load)?;
        let link =
            bpf::link_map_iterator(program.as_fd(), map.fd().as_fd()).map_err(StaleError::Link)?;
        Ok(Self { link })
    }

    /// The sockets that are stale now.
    pub fn read(&self) -> io::Result<Vec<StaleSocket>> {
        let mut iterator = File::from(bpf::start_iterator(self.link.as_fd())?);
        let mut bytes = Vec::new();
        iterator.read_to_end(&mut bytes)?;
        let records = bytes.chunks_exact(RECORD).map(|record| {
            // SAFETY: as many bytes as the type has, of which every pattern is
            // a value.
            unsafe { record.as_ptr().cast::<StaleSocket>().read_unaligned() }
        });
        Ok(records.collect())
    }
}
