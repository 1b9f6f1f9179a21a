//! Says things to the verifier that the compiler would keep from it.
//!
//! The verifier follows every value a variable may have: a loop that leaves
//! with one of sixteen known numbers makes it check all that comes after
//! sixteen times. Where the number does not matter for safety, [`opaque`]
//! makes it forget.

/// The same value, of which the verifier knows no more than that it has one byte. For
/// those who may see pointers' values (`CAP_PERFMON`) it takes the difference of two
/// pointers for any number.
#[inline(always)]
pub fn opaque<T: Copy>(value: T) -> T {
    const { assert!(size_of::<T>() == 1) };
    // SAFETY: one byte, back and forth; zero is added to it.
    unsafe {
        let mut byte = u64::from(core::mem::transmute_copy::<T, u8>(&value));
        core::arch::asm!(
            "{zero} = r10",
            "{zero} -= r10",
            "{byte} ^= {zero}",
            "{byte} &= 255",
            byte = inout(reg) byte,
            zero = out(reg) _,
            options(pure, nomem, nostack, preserves_flags)
        );
        core::mem::transmute_copy(&(byte as u8))
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
