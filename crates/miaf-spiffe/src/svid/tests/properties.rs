//! Valid responses, changed at random. Whatever comes of it: no panic, and what still passes is
//! still this device.

use std::time::Instant;

use proptest::prelude::*;
use proptest::sample::Index;

use x509_parser::x509::SubjectPublicKeyInfo;

use super::*;
use crate::algorithms::key_is_allowed;
use crate::bundle::MAX_ANCHORS;
use crate::chain::MAX_CHAIN;

#[test]
fn chain_with_any_bit_flipped_is_refused() {
    let response = with_intermediate();
    let (good, bundle) = (response.certificates(), bundle_of(&[self_signed(&response.issuers[1])]));
    let domain = domain();
    let expected = expectation(&domain, MIAF_V0, None, &DEVICE.spki);
    for (which, certificate) in good.iter().enumerate() {
        for bit in 0..certificate.len() * 8 {
            let mut chain = good.clone();
            chain[which][bit / 8] ^= 1 << (bit % 8);
            let pems: Vec<_> =
                chain.into_iter().map(|der| certificate_pem(&CertificateDer::from(der))).collect();
            let validated = Chain::from_pem(&pems).and_then(|c| validate(&c, &expected, &bundle, at(NOW)));
            assert!(validated.is_err(), "bit {bit} of certificate {which}: {validated:?}");
        }
    }
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let bytes = || prop::collection::vec(any::<u8>(), 1..8);
    let edit = prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        (any::<Index>(), 0..8_u8).prop_map(|(at, bit)| Edit::Flip(at, bit)),
        (any::<Index>(), bytes()).prop_map(|(at, more)| Edit::Insert(at, more)),
        (any::<Index>(), 1..40_usize).prop_map(|(at, length)| Edit::Remove(at, length)),
        (any::<Index>(), 1..40_usize, any::<Index>())
            .prop_map(|(from, length, to)| Edit::Repeat(from, length, to)),
    ];
    prop::collection::vec(edit, 1..4)
}

fn edited(mut bytes: Vec<u8>, edits: &[Edit]) -> Vec<u8> {
    edits.iter().for_each(|edit| edit.apply(&mut bytes));
    bytes
}

/// The response as the device that holds it sees it: whatever passes must be for this identity and
/// this key, by the word of another parser than the one that validated, and for what an SVID is
/// for.
fn is_refused_or_still_this_device(validated: Result<X509Svid, SvidError>) {
    let svid = match validated {
        Ok(svid) => svid,
        Err(why) => {
            let told = why.to_string();
            assert!(told.chars().count() < 5000 && !told.chars().any(char::is_control), "{told:?}");
            return;
        }
    };
    let leaf = webpki::EndEntityCert::try_from(svid.chain().leaf()).unwrap();
    assert_eq!(leaf.valid_uri_names().collect::<Vec<_>>(), [DEVICE_ID]);
    assert_eq!(leaf.subject_public_key_info().as_ref(), DEVICE.spki);
    assert_eq!(svid.spiffe_id(), &id(DEVICE_ID));
    assert!(svid.not_before() <= at(NOW) && at(NOW) <= svid.not_after());
    let key_usage: &[u8] = &[0x06, 3, 0x55, 0x1d, 0x0f, 1, 1, 0xff, 4];
    let der = svid.chain().leaf();
    let found = der.windows(key_usage.len()).position(|bytes| bytes == key_usage).unwrap();
    let flags = der[found + key_usage.len() + 4];
    assert_eq!(flags & (DIGITAL_SIGNATURE | KEY_CERT_SIGN | CRL_SIGN), DIGITAL_SIGNATURE);
    // Without a bundle, the ends of issuers are unknown.
    let alone = X509Svid { until: svid.not_after, ..svid };
    assert_eq!(X509Svid::from_stored(alone.chain.clone()), Ok(alone));
}

/// Found by the property below: a leaf whose year was changed in one bit.
#[test]
fn svid_that_outlives_its_issuer_is_read_back_by_its_own_end() {
    let mut response = renewal();
    response.leaf.not_after = NOW + 10 * 365 * DAY;
    let svid = response.validate();
    assert!(svid.as_ref().is_ok_and(|svid| svid.until < svid.not_after), "{svid:?}");
    is_refused_or_still_this_device(svid);
}

/// A renewal, so that there is one name that it must be for.
fn renewal() -> Response {
    Response { renewing: Some(DEVICE_ID), ..with_intermediate() }
}

proptest! {
    #![proptest_config(crate::testing::cases(500))]

    /// The issuers sign whatever comes out: past the signatures, every other check is on its own.
    #[test]
    fn certificates_changed_before_they_are_signed(which in 0..3_usize, edits in edits()) {
        let mut response = renewal();
        let template = if which == 0 { &mut response.leaf } else { &mut response.issuers[which - 1] };
        template.edits = edits;
        response.with_root = true;
        // What is no certificate at all cannot be in a bundle.
        let root = self_signed(response.root());
        if which < 2 || serves_as_anchor(&root) {
            is_refused_or_still_this_device(response.validate());
        }
    }

    /// The same within one extension, whose outer form stays right.
    #[test]
    fn extensions_changed_before_they_are_signed(which in 0..3_usize, extension in any::<Index>(), edits in edits()) {
        let mut response = renewal();
        let template = if which == 0 { &mut response.leaf } else { &mut response.issuers[which - 1] };
        let (_, _, value) = extension.get_mut(&mut template.extensions);
        *value = edited(std::mem::take(value), &edits);
        let root = self_signed(response.root());
        if which < 2 || serves_as_anchor(&root) {
            is_refused_or_still_this_device(response.validate());
        }
    }

    #[test]
    fn texts_changed_after_they_were_written(which in 0..2_usize, edits in edits()) {
        let response = renewal();
        let mut pems = response.pems();
        pems[which] = String::from_utf8_lossy(&edited(pems[which].clone().into_bytes(), &edits)).into_owned();
        is_refused_or_still_this_device(validate_as(&pems, &response));
    }

    #[test]
    fn texts_of_anything(pems in prop::collection::vec(".{0,100}", 0..10), der in prop::collection::vec(any::<u8>(), 0..300)) {
        let response = renewal();
        prop_assert!(validate_as(&pems, &response).is_err());
        prop_assert!(validate_as(&[certificate_pem(&CertificateDer::from(der))], &response).is_err());
    }

    /// A key of any form is validated without a panic. That of an issuer has signed before, but a
    /// leaf's has not.
    #[test]
    fn keys_of_any_form(which in 0..5_usize, edits in edits()) {
        let good = [&DEVICE, &P384, &RSA_2048, &RSA_3072_FOR_PSS, &ED25519][which].spki.clone();
        if let Ok((_, key)) = SubjectPublicKeyInfo::from_der(&edited(good, &edits)) {
            let of_v0 = key_is_allowed(&key, Algorithms::MiafV0);
            let released = key_is_allowed(&key, Algorithms::Released);
            prop_assert!(of_v0.is_err() || released.is_ok(), "released Margo allows more, not less");
        }
    }

    #[test]
    fn moments_of_any_kind(
        now in prop_oneof![any::<i64>(), (NOW - DAY) * 1000..(NOW + DAY) * 1000],
        not_before in prop_oneof![0..253_402_300_799_i64, NOW - DAY..NOW + DAY],
        not_after in prop_oneof![0..253_402_300_799_i64, NOW - DAY..NOW + DAY],
    ) {
        let mut response = renewal();
        (response.leaf.not_before, response.leaf.not_after) = (not_before, not_after);
        response.now = Timestamp::from_millis(now);
        if let Ok(svid) = response.validate() {
            prop_assert!(svid.not_before() <= response.now && response.now <= svid.not_after());
        }
    }
}

fn serves_as_anchor(der: &[u8]) -> bool {
    let keys = json!({ "keys": [{ "kty": "EC", "use": "x509-svid", "x5c": [BASE64.encode(der)] }] });
    Bundle::from_served(keys.to_string().as_bytes(), &domain()).is_ok()
}

fn validate_as(pems: &[String], response: &Response) -> Result<X509Svid, SvidError> {
    let (domain, device) = (domain(), id(DEVICE_ID));
    let expected = expectation(&domain, MIAF_V0, Some(&device), &DEVICE.spki);
    let bundle = bundle_of(&[self_signed(&response.issuers[1])]);
    validate(&Chain::from_pem(pems)?, &expected, &bundle, response.now)
}

/// Issuers that could each have issued each other, no anchor that could end the search, and as much
/// to read as goes in.
#[test]
fn costliest_chain_is_validated_in_seconds() {
    let keys: [&'static Key; MAX_CHAIN - 1] = [&INTERMEDIATE, &ROOT, &OTHER, &P384, &RSA_2048];
    let mut response = direct();
    response.issuers = vec![authority("Same", &ROOT)];
    for key in keys {
        let mut issuer = authority("Same", key);
        (0..800).for_each(|_| issuer.add(UNKNOWN, false, vec![5, 0]));
        response.appended.push(issuer.certify(&authority("Same", &ROOT)));
    }
    response.bundle = Some(vec![self_signed(&authority("Other", &OTHER)); MAX_ANCHORS]);
    let begun = Instant::now();
    assert_eq!(response.validate(), Err(SvidError::UnknownIssuer));
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(30), "{took:?}"); // without optimization about one
}
