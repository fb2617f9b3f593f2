//! Fuzz targets: the two forms of a stored key, and the file of one that is installed.

use super::{installed_key, software, tss2};
use miaf_spiffe::testing::check_error;

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

/// The file of a key that is to be installed. One that is accepted is accepted in the form that it
/// is kept in, and signs.
pub(crate) fn installed_key(data: &[u8]) -> bool {
    match installed_key::read(data, "the key file x") {
        Ok(key) => {
            key.check();
            true
        }
        Err(e) => check_error(e),
    }
}
