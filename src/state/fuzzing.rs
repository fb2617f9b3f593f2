//! Fuzz target: records of the state, as a disk or an older agent may have left them.

use super::{
    Record, RetryAfterDelays, StoredBundle, StoredDiscovery, StoredIdentity, StoredIssuedChain,
    StoredPendingKey, StoredTime,
};
use miaf_spiffe::testing::check_error;

/// Checks a record; the first byte chooses its kind. One that is accepted is the same after it was
/// written again.
pub(crate) fn records(data: &[u8]) -> bool {
    let [choice, data @ ..] = data else { return false };
    match choice % 7 {
        0 => check::<StoredIdentity>(data),
        1 => check::<StoredPendingKey>(data),
        2 => check::<StoredIssuedChain>(data),
        3 => check::<StoredDiscovery>(data),
        4 => check::<StoredBundle>(data),
        5 => check::<StoredTime>(data),
        _ => check::<RetryAfterDelays>(data),
    }
}

fn check<R: Record + PartialEq>(data: &[u8]) -> bool {
    match R::decode(data) {
        Ok(record) => {
            let written = record.encode().expect("a record that was read");
            assert!(R::decode(&written).is_ok_and(|again| again == record));
            true
        }
        Err(e) => check_error(e),
    }
}
