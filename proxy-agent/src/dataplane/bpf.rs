//! Calls of bpf(2) that aya does not make.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

/// Opens what is pinned at a path.
pub fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        path: u64,
        zero: u32,
        flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = Attributes {
        path: path.as_ptr().addr() as u64,
        zero: 0,
        flags: 0,
    };
    // SAFETY: the attributes are those of the command, and the path outlives
    // the call.
    let object = unsafe { bpf(BPF_OBJ_GET, &attributes) }?;
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(object) })
}

/// Puts another program in the place of the one at a link, without a gap.
pub fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        link: i32,
        new_program: i32,
        flags: u32,
        old_program: u32,
    }
    let attributes = Attributes {
        link: link.as_raw_fd(),
        new_program: program.as_raw_fd(),
        flags: 0,
        old_program: 0,
    };
    // SAFETY: the attributes are those of the command.
    unsafe { bpf(BPF_LINK_UPDATE, &attributes) }.map(drop)
}

/// Takes the program of a link off its hook. No packet meets it once this has returned;
/// dropping the last reference would have the kernel do so some time later.
pub fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let link = link.as_raw_fd();
    // SAFETY: the attributes are those of the command.
    unsafe { bpf(BPF_LINK_DETACH, &link) }.map(drop)
}

/// # Safety
///
/// The attributes must be those of the command.
unsafe fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
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
    libc::c_int::try_from(result).map_err(io::Error::other)
}
