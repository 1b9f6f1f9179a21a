//! Somebody else's program on a cgroup: it forbids IPv4 and IPv6 connections to
//! one port, so that a test sees whether it still runs.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

use anyhow::{Context, Result};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const BPF_CGROUP_INET4_CONNECT: u32 = 10;
const BPF_CGROUP_INET6_CONNECT: u32 = 11;
const BPF_F_ALLOW_MULTI: u32 = 2;
/// Offset of `user_port` in `struct bpf_sock_addr`.
const USER_PORT: i16 = 24;

/// Forbids connections to a port until dropped.
#[derive(Debug)]
pub struct PortGuard {
    cgroup: File,
    programs: Vec<(u32, OwnedFd)>,
}

impl PortGuard {
    /// Attaches the programs to a cgroup, beside whatever is there.
    pub fn attach(cgroup: &Path, port: u16) -> Result<Self> {
        let mut guard = Self {
            cgroup: File::open(cgroup).with_context(|| cgroup.display().to_string())?,
            programs: Vec::new(),
        };
        for call in [BPF_CGROUP_INET4_CONNECT, BPF_CGROUP_INET6_CONNECT] {
            let program = load(call, port).context("load a foreign program")?;
            guard
                .command(BPF_PROG_ATTACH, call, &program, BPF_F_ALLOW_MULTI)
                .context("attach a foreign program")?;
            guard.programs.push((call, program));
        }
        Ok(guard)
    }

    fn command(
        &self,
        command: libc::c_int,
        call: u32,
        program: &OwnedFd,
        flags: u32,
    ) -> io::Result<i32> {
        #[repr(C)]
        struct Attributes {
            target: i32,
            program: i32,
            attach_type: u32,
            flags: u32,
        }
        let attributes = Attributes {
            target: self.cgroup.as_raw_fd(),
            program: program.as_raw_fd(),
            attach_type: call,
            flags,
        };
        // SAFETY: the attributes are those of the command.
        unsafe { bpf(command, &attributes) }
    }
}

impl Drop for PortGuard {
    fn drop(&mut self) {
        for (call, program) in &self.programs {
            // The cgroup's end is theirs too.
            let _ = self.command(BPF_PROG_DETACH, *call, program, 0);
        }
    }
}

fn load(call: u32, port: u16) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Instruction {
        code: u8,
        registers: u8,
        offset: i16,
        immediate: i32,
    }
    #[repr(C)]
    struct Attributes {
        program_type: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log: [u32; 4],
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
        ifindex: u32,
        attach_type: u32,
    }
    let instruction = |code, registers, offset, immediate| Instruction {
        code,
        registers,
        offset,
        immediate,
    };
    let instructions = [
        // r2 = ctx->user_port
        instruction(0x61, 0x12, USER_PORT, 0),
        // r0 = 0 (forbidden)
        instruction(0xb7, 0, 0, 0),
        // if r2 == port goto exit
        instruction(0x15, 2, 1, i32::from(port.to_be())),
        // r0 = 1 (allowed)
        instruction(0xb7, 0, 0, 1),
        // exit
        instruction(0x95, 0, 0, 0),
    ];
    let attributes = Attributes {
        program_type: BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
        count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        instructions: instructions.as_ptr().addr() as u64,
        license: c"GPL".as_ptr().addr() as u64,
        log: [0; 4],
        kernel_version: 0,
        flags: 0,
        name: *b"somebody_elses\0\0",
        ifindex: 0,
        attach_type: call,
    };
    // SAFETY: the attributes are those of the command, and what they point to
    // outlives the call.
    let program = unsafe { bpf(BPF_PROG_LOAD, &attributes) }?;
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(program) })
}

/// # Safety
///
/// The attributes must be those of the command.
unsafe fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<i32> {
    // SAFETY: the caller vouches for the attributes; the kernel reads no more
    // than the size that is stated.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}
