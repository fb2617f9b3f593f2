//! Until when an SVID can be used: by its own end, and by those of its issuers.

use super::*;

#[test]
fn svid_ends_with_the_first_certificate_it_needs() {
    const HOUR: i64 = 3600;
    let until = |response: &Response| response.validate().unwrap().until();
    assert_eq!(until(&direct()), at(NOW + DAY));
    assert_eq!(until(&with_intermediate()), at(NOW + DAY), "an issuer that outlives it");

    let mut response = with_intermediate();
    response.intermediate().not_after = NOW + HOUR;
    assert_eq!(until(&response), at(NOW + HOUR));
    response.now = at(NOW + HOUR);
    assert_eq!(until(&response), at(NOW + HOUR), "to the second");
    response.now = at(NOW + HOUR + 1);
    let ended = SvidError::IssuerExpired { not_after: at(NOW + HOUR), now: response.now };
    assert_eq!(response.validate(), Err(ended));

    let mut response = direct();
    response.root().not_after = NOW + HOUR;
    assert_eq!(until(&response), at(NOW + DAY), "an anchor is a name and a key");
    response.with_root = true;
    assert_eq!(until(&response), at(NOW + DAY), "also where it came with the response");

    // Two issuers in a row, and the upper one ends first.
    let mut response = with_intermediate();
    response.issuers.insert(1, authority("Upper", &OTHER));
    response.issuers[1].not_after = NOW + HOUR;
    assert_eq!(until(&response), at(NOW + HOUR));
}

#[test]
fn svid_of_a_cross_signed_issuer_lasts_as_its_best_path() {
    const HOUR: i64 = 3600;
    let with_another = |ends: i64, begins: i64| {
        let mut response = with_intermediate();
        response.intermediate().not_after = NOW + HOUR;
        let mut another = authority("Intermediate", &INTERMEDIATE);
        (another.not_before, another.not_after) = (begins, ends);
        let root = authority("Root", &ROOT);
        response.appended = vec![another.certify(&root)];
        response
    };
    let until = |response: &Response| response.validate().unwrap().until();
    assert_eq!(until(&with_another(NOW + 2 * HOUR, NOW - HOUR)), at(NOW + 2 * HOUR), "the longer one");
    assert_eq!(until(&with_another(NOW + 90 * DAY, NOW - HOUR)), at(NOW + DAY), "the leaf's own end");
    assert_eq!(until(&with_another(NOW - MINUTE, NOW - HOUR)), at(NOW + HOUR), "one that has ended");
    assert_eq!(until(&with_another(NOW + 3 * HOUR, NOW + HOUR)), at(NOW + 3 * HOUR), "one after the other");
    assert_eq!(until(&with_another(NOW + 3 * HOUR, NOW + 2 * HOUR)), at(NOW + HOUR), "a gap in between");
    let mut response = with_another(NOW + 3 * HOUR, NOW + 2 * HOUR);
    response.now = at(NOW + 2 * HOUR);
    assert_eq!(until(&response), at(NOW + 3 * HOUR), "and on the other side of it");
}

#[test]
fn svid_may_end_sooner_or_later_under_another_bundle() {
    let mut response = with_intermediate();
    response.intermediate().not_after = NOW + MINUTE;
    let svid = response.validate().unwrap();
    let root = bundle_of(&[self_signed(response.root())]);
    let issuer_as_anchor = bundle_of(&[response.intermediate().clone().certify(&authority("Root", &ROOT))]);
    assert_eq!(svid.until(), at(NOW + MINUTE));
    assert_eq!(svid.under(&issuer_as_anchor, at(NOW)).until(), at(NOW + DAY));
    let stored = X509Svid::from_stored(svid.chain().clone()).unwrap();
    for now in [NOW, NOW + MINUTE, NOW + DAY / 2, NOW + 2 * DAY, 0] {
        assert_eq!(stored.under(&root, at(now)), svid, "whatever the clock says");
        assert_eq!(stored.under(&bundle_of(&[]), at(now)).until(), at(NOW + DAY), "unknown");
    }
}
