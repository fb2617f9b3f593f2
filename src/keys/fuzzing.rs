//! Fuzz targets: PEM, and the two forms of a key at rest.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::{software, tss2};
use crate::fuzzing::check_error;
use crate::pem;

/// A PEM file. No block of it is passed over, and each reads the same when it is written again.
pub(crate) fn pem(data: &[u8]) -> bool {
    let read = match pem::read(data) {
        Ok(read) => read,
        Err(e) => return check_error(e),
    };
    let text: Vec<u8> = data.iter().copied().filter(|byte| *byte != 0).collect();
    let begins = text.windows(10).filter(|window| window == b"-----BEGIN").count();
    assert!(read.blocks.len() + read.commented_out.len() >= begins, "{read:?}");
    for block in &read.blocks {
        let base64 = BASE64.encode(&*block.der);
        let written = format!("-----BEGIN {label}-----\n{base64}\n-----END {label}-----", label = &*block.label);
        let again = pem::read(written.as_bytes()).expect("a block that was read");
        assert!(again.blocks.first().is_some_and(|again| again.der == block.der && again.label == block.label));
    }
    match pem::certificates(data) {
        Ok(certificates) => drop(certificates.unused()),
        Err(e) => drop(check_error(e)),
    }
    !read.blocks.is_empty()
}

/// A TSS2 PEM. A key that is accepted reads the same when it is written again.
pub(crate) fn tss2(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    match tss2::Tss2Key::from_pem(text) {
        Ok(key) => {
            let written = key.to_pem().expect("a key that was read");
            assert!(tss2::Tss2Key::from_pem(&written).expect("a key that was written") == key);
            true
        }
        Err(e) => check_error(e),
    }
}

/// A sealed software key.
pub(crate) fn sealed(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    match software::check_form(text) {
        Ok(()) => true,
        Err(e) => check_error(e),
    }
}
