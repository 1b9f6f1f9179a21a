//! Array maps mapped into memory: reads and writes without system calls, and
//! stores whose atomicity we decide, where `bpf(2)` copies bytes as it likes.

use std::{io, marker::PhantomData, mem::MaybeUninit, os::fd::AsFd as _, ptr::NonNull};

use aya::{
    Pod,
    maps::{Map, MapData},
};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// A map that cannot be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MappedError {
    #[error("it is not an array")]
    NotAnArray,
    #[error("its values have {found} bytes, not {expected}")]
    ValueSize { found: u32, expected: usize },
    #[error("read its description")]
    Info(#[source] aya::maps::MapError),
    #[error("map it into memory")]
    Mmap(#[source] io::Error),
}

/// An array map in memory. Rows lie `stride` bytes apart.
#[derive(Debug)]
pub struct Mapped<T> {
    base: NonNull<u8>,
    length: usize,
    stride: usize,
    rows: u32,
    access: Access,
    value: PhantomData<T>,
}

// SAFETY: it owns the mapping, which belongs to no thread; the kernel and other
// processes share the memory whichever thread touches it.
unsafe impl<T> Send for Mapped<T> {}

/// The access that a mapping allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

impl<T: Pod> Mapped<T> {
    /// Words of a row. Rows are copied word by word: one volatile access to a whole row
    /// is a single instruction to LLVM, which takes minutes to compile for a `Filter`.
    const WORDS: usize = {
        assert!(align_of::<T>() <= 8, "rows are eight bytes apart");
        assert!(align_of::<T>() >= align_of::<u32>(), "rows are words");
        size_of::<T>() / size_of::<u32>()
    };

    /// Maps all rows of `map`.
    pub fn new(map: &Map, access: Access) -> Result<Self, MappedError> {
        let Map::Array(data) = map else {
            return Err(MappedError::NotAnArray);
        };
        let info = data.info().map_err(MappedError::Info)?;
        let (value_size, rows) = (info.value_size(), info.max_entries());
        if value_size as usize != size_of::<T>() {
            return Err(MappedError::ValueSize {
                found: value_size,
                expected: size_of::<T>(),
            });
        }
        let stride = size_of::<T>().next_multiple_of(8);
        Self::map(data, stride, rows, access).map_err(MappedError::Mmap)
    }

    fn map(data: &MapData, stride: usize, rows: u32, access: Access) -> io::Result<Self> {
        const PAGE: usize = 4096;
        let length = (stride * rows as usize).next_multiple_of(PAGE);
        let size = std::num::NonZeroUsize::new(length)
            .ok_or_else(|| io::Error::other("the map has no rows"))?;
        let protection = match access {
            Access::Read => ProtFlags::PROT_READ,
            Access::Write => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        };
        // SAFETY: a fresh mapping of a file descriptor that is a BPF array,
        // which keeps its size for life; nothing else refers to the memory.
        let base = unsafe {
            mmap(
                None,
                size,
                protection,
                MapFlags::MAP_SHARED,
                data.fd().as_fd(),
                0,
            )
        }?;
        Ok(Self {
            base: base.cast(),
            length,
            stride,
            rows,
            access,
            value: PhantomData,
        })
    }

    /// Number of rows.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// A copy of a row. A row that a program writes meanwhile may be torn.
    pub fn get(&self, row: u32) -> Option<T> {
        let pointer = self.row(row)?;
        let (from, mut value) = (pointer.cast::<u32>(), MaybeUninit::<T>::uninit());
        let to = NonNull::from(&mut value).cast::<u32>();
        for word in 0..Self::WORDS {
            // SAFETY: a word of a whole row of the mapping, and one of a value as long.
            unsafe { to.add(word).write(from.add(word).read_volatile()) };
        }
        // SAFETY: all words are written, and `T` is plain bytes.
        Some(unsafe { value.assume_init() })
    }

    /// Overwrites a row that no program reads. Returns `None` if there is no such row
    /// or the mapping is read-only.
    pub fn set(&mut self, row: u32, value: T) -> Option<()> {
        let to = self.row_mut(row)?.cast::<u32>();
        let from = NonNull::from(&value).cast::<u32>();
        for word in 0..Self::WORDS {
            // SAFETY: words as in `get`, of a writable mapping; `T` is plain bytes.
            unsafe { to.add(word).write_volatile(from.add(word).read()) };
        }
        Some(())
    }

    /// Overwrites part of a row by one store. `P` must be an integer of 1, 2,
    /// 4 or 8 bytes at a multiple of its size. Returns `None` if there is no such row
    /// or the mapping is read-only.
    pub fn store<P: Store>(&mut self, row: u32, offset: usize, value: P) -> Option<()> {
        assert!(
            offset.is_multiple_of(size_of::<P>()) && offset + size_of::<P>() <= size_of::<T>(),
            "a store within the row, at its natural alignment"
        );
        let pointer = self.row_mut(row)?;
        // SAFETY: within the row and aligned, as just asserted of an aligned
        // row, in a writable mapping. One store instruction is made of it.
        unsafe {
            pointer
                .as_ptr()
                .add(offset)
                .cast::<P>()
                .write_volatile(value);
        }
        Some(())
    }

    fn row(&self, row: u32) -> Option<NonNull<u8>> {
        if row >= self.rows {
            return None;
        }
        // SAFETY: below the number of rows, so within the mapping, which is as
        // long as all of them.
        Some(unsafe { self.base.add(row as usize * self.stride) })
    }

    fn row_mut(&mut self, row: u32) -> Option<NonNull<u8>> {
        match self.access {
            Access::Read => None,
            Access::Write => self.row(row),
        }
    }
}

/// Integers that one instruction stores.
pub trait Store: Copy {}
impl Store for u16 {}
impl Store for u32 {}
impl Store for u64 {}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, and nothing refers to it any
        // more. Failure would leave it mapped, which harms nobody.
        let _ = unsafe { munmap(self.base.cast(), self.length) };
    }
}
