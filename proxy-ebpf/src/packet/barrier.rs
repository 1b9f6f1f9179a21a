//! Says things to the verifier that the compiler would keep from it.
//!
//! The verifier follows every value a variable may have: a loop that leaves
//! with one of sixteen known numbers makes it check all that comes after
//! sixteen times. Where the number does not matter for safety, [`opaque`]
//! makes it forget.

/// The same value, of which the verifier knows no more than its type. For
/// values of one byte: it does not follow those in memory, unless they are zero, so
/// what is there has another bit set.
#[inline(always)]
pub fn opaque<T: Copy>(value: T) -> T {
    const MARK: u8 = 0x80;
    const { assert!(size_of::<T>() == 1) };
    // SAFETY: a type of one byte without padding, back and forth; a valid, aligned local.
    // Volatile, so that the value really passes through memory.
    unsafe {
        let mut memory = core::mem::transmute_copy::<T, u8>(&value) ^ MARK;
        let pointer = &raw mut memory;
        pointer.write_volatile(memory);
        core::mem::transmute_copy(&(pointer.read_volatile() ^ MARK))
    }
}

/// `value & MASK`, by an instruction of its own. The compiler leaves out a mask
/// where it knows the bound itself, or checks another register than the one it
/// then uses; the verifier, above all that of older kernels, sees neither.
#[inline(always)]
pub fn masked<const MASK: u32>(value: u32) -> usize {
    const { assert!(MASK <= i32::MAX as u32) };
    let mut value = u64::from(value);
    // SAFETY: changes nothing but its operand.
    unsafe {
        core::arch::asm!(
            "{0} &= {MASK}",
            inout(reg) value,
            MASK = const MASK,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    value as usize
}
