//! Random numbers.

use ring::rand::{SecureRandom as _, SystemRandom};

/// Bytes from the kernel; zeros where it has no randomness.
pub(crate) fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => bytes,
        Err(_) => [0; N],
    }
}

/// A number uniform in `0.0..1.0`, from the kernel.
pub(crate) fn unit() -> f64 {
    let mut bytes = [0; 8];
    // Where the kernel has no randomness, nothing that needs a key works either: the middle is as
    // good as any.
    if SystemRandom::new().fill(&mut bytes).is_err() {
        return 0.5;
    }
    (u64::from_le_bytes(bytes) >> 11) as f64 / (1u64 << 53) as f64
}
