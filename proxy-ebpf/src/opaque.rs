//! Keeps the verifier's work small.
//!
//! The verifier follows every value a variable may have: a loop that leaves
//! with one of sixteen known numbers makes it check all that comes after
//! sixteen times. Where the number does not matter for safety, [`opaque`]
//! makes it forget.

/// The same value, of which the verifier knows no more than its type. For
/// values of one byte: it does not follow those in memory.
#[inline(always)]
pub fn opaque<T: Copy>(value: T) -> T {
    const { assert!(size_of::<T>() == 1) };
    let mut memory = value;
    let pointer = &raw mut memory;
    // SAFETY: a valid, aligned local. Volatile, so that the value really
    // passes through memory.
    unsafe {
        pointer.write_volatile(value);
        pointer.read_volatile()
    }
}
