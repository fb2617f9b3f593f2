//! Against real TLS peers that answer with given bytes.

use crate::x509::{OBJECT_IDENTIFIER, wrap};

pub(super) fn oid(content: &[u8]) -> Vec<u8> {
    wrap(OBJECT_IDENTIFIER, content)
}
