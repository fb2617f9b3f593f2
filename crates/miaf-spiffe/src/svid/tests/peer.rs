//! The same certificates, presented by a peer.

use super::*;
use crate::peer::{ExpectedPeer, PeerError, PeerSvid, validate_peer};

const WFM: &str = "spiffe://factory.example/margo/wfm/wfm-1";

/// A WFM's SVID under a root.
fn wfm() -> Response {
    let mut response = direct();
    san(&mut response, &[uri(WFM)]);
    response
}

/// The same under an intermediate.
fn wfm_below() -> Response {
    let mut response = with_intermediate();
    san(&mut response, &[uri(WFM)]);
    response
}

fn expected() -> ExpectedPeer {
    ExpectedPeer::SpiffeId(id(WFM))
}

fn presented(response: &Response, expected: &ExpectedPeer) -> Result<PeerSvid, PeerError> {
    let chain: Vec<_> = response.certificates().into_iter().map(CertificateDer::from).collect();
    let anchors = response.bundle.clone();
    let anchors = anchors.unwrap_or_else(|| response.issuers.last().map(self_signed).into_iter().collect());
    validate_peer(&chain, expected, &bundle_of(&anchors), response.now)
}

#[test]
fn peer_is_accepted_as_spiffe_says() {
    type Good = fn() -> Response;
    type Bend = fn(&mut Response);
    let cases: Vec<(&str, Good, Bend)> = vec![
        ("signed by an anchor", wfm, |_| {}),
        ("signed by an intermediate", wfm_below, |_| {}),
        ("with the root at the end", wfm_below, |r| r.with_root = true),
        ("further DNS names", wfm, |r| san(r, &[dns("wfm.example"), uri(WFM), dns("*.example")])),
        ("no subject, and a critical SAN", wfm, |r| r.leaf.subject = no_name()),
        ("a subject, and a SAN that is not critical", wfm, |r| {
            r.leaf.subject = name("wfm");
            r.leaf.set(SUBJECT_ALT_NAME, false, names(&[uri(WFM)]));
        }),
        ("no extended key usage", wfm, |r| r.leaf.without(EXTENDED_KEY_USAGE)),
        ("a key on P-384", wfm, |r| r.leaf.key = &P384),
        ("a key of Ed25519", wfm, |r| r.leaf.key = &ED25519),
        ("an issuer with RSA PKCS#1 v1.5", wfm_below, |r| {
            r.intermediate().key = &RSA_3072;
            r.leaf.signed = Some(Signature::Pkcs1Sha256);
        }),
        ("an issuer on P-384", wfm_below, |r| {
            r.intermediate().key = &P384;
            r.leaf.signed = Some(Signature::EcdsaSha384);
        }),
        ("its last second", wfm, |r| r.now = at(NOW + DAY)),
    ];
    for (case, good, bend) in cases {
        let mut response = good();
        bend(&mut response);
        let svid = presented(&response, &expected()).unwrap_or_else(|why| panic!("{case}: {why:?}"));
        assert_eq!((svid.spiffe_id, svid.not_after), (id(WFM), at(NOW + DAY)), "{case}");
    }
}

#[test]
fn peer_ends_with_the_first_of_its_path() {
    let mut response = wfm_below();
    response.intermediate().not_after = NOW + MINUTE;
    let svid = presented(&response, &expected()).unwrap();
    assert_eq!((svid.not_before, svid.not_after), (at(NOW - MINUTE), at(NOW + MINUTE)));
    response.now = at(NOW + MINUTE + 1);
    let (found, not_after, now) = (id(WFM), at(NOW + MINUTE), response.now);
    assert_eq!(presented(&response, &expected()), Err(PeerError::Expired { found, not_after, now }));
}

#[test]
fn certificate_that_is_no_svid_is_refused() {
    let cases: Vec<Case<SvidError>> = vec![
        (
            "a CA",
            |r| r.leaf.set(BASIC_CONSTRAINTS, true, basic_constraints(true, None)),
            SvidError::CertificateAuthority,
        ),
        (
            "keyCertSign",
            |r| r.leaf.set(KEY_USAGE, true, usages(DIGITAL_SIGNATURE | KEY_CERT_SIGN)),
            SvidError::MaySignCertificates,
        ),
        (
            "cRLSign",
            |r| r.leaf.set(KEY_USAGE, true, usages(DIGITAL_SIGNATURE | CRL_SIGN)),
            SvidError::MaySignCertificates,
        ),
        ("two URIs", |r| san(r, &[uri(WFM), uri("spiffe://factory.example/x")]), SvidError::UriCount(2)),
        ("the same URI twice", |r| san(r, &[uri(WFM), uri(WFM)]), SvidError::UriCount(2)),
        (
            "a second URI of the Web",
            |r| san(r, &[uri("https://wfm.example/"), uri(WFM)]),
            SvidError::UriCount(2),
        ),
        ("no URI", |r| san(r, &[dns("wfm.example")]), SvidError::UriCount(0)),
        ("no names", |r| r.leaf.without(SUBJECT_ALT_NAME), SvidError::UriCount(0)),
        (
            "another scheme",
            |r| san(r, &[uri("https://factory.example/margo/wfm/wfm-1")]),
            not_a_spiffe_id("https://factory.example/margo/wfm/wfm-1", SpiffeIdError::Scheme),
        ),
        (
            "no path",
            |r| san(r, &[uri("spiffe://factory.example")]),
            not_a_spiffe_id("spiffe://factory.example", SpiffeIdError::NoPath),
        ),
        (
            "no subject, and a SAN that is not critical",
            |r| {
                r.leaf.subject = no_name();
                r.leaf.set(SUBJECT_ALT_NAME, false, names(&[uri(WFM)]));
            },
            SvidError::NamesNotCritical,
        ),
        ("a short RSA key", |r| r.leaf.key = &RSA_2048, SvidError::WeakRsa(2048)),
    ];
    for (case, bend, why) in cases {
        let mut response = wfm();
        bend(&mut response);
        assert_eq!(presented(&response, &expected()), Err(PeerError::NoSvid(why)), "{case}");
    }
    let anchors = bundle_of(&[self_signed(&authority("Root", &ROOT))]);
    assert!(matches!(
        validate_peer(&[], &expected(), &anchors, at(NOW)),
        Err(PeerError::NoSvid(SvidError::EmptyChain))
    ));
    let noise = CertificateDer::from(b"noise".to_vec());
    assert!(matches!(
        validate_peer(&[noise], &expected(), &anchors, at(NOW)),
        Err(PeerError::NoSvid(SvidError::Malformed { .. }))
    ));
}

#[test]
fn another_peer_is_named() {
    for other in [
        "spiffe://factory.example/margo/wfm/wfm-2",
        "spiffe://factory.example/margo/wfm/wfm-1/client/c",
        "spiffe://factory.example/margo/wfm/WFM-1",
        "spiffe://factory.example/margo/wfm/wfm-10",
        DEVICE_ID,
        // The chain verifies: the authority may well issue for two trust domains.
        "spiffe://other.example/margo/wfm/wfm-1",
    ] {
        let mut response = wfm();
        san(&mut response, &[uri(other), dns("wfm.example")]);
        let error = presented(&response, &expected()).unwrap_err();
        assert_eq!(error, PeerError::NotExpected { expected: expected(), found: id(other) });
        assert_eq!(error.to_string(), format!("the peer is {other}, not {WFM}"));
    }
    let foreign = ExpectedPeer::SpiffeId(id("spiffe://other.example/margo/wfm/wfm-1"));
    let mut response = wfm();
    san(&mut response, &[uri("spiffe://other.example/margo/wfm/wfm-1")]);
    let error = presented(&response, &foreign).unwrap_err();
    assert_eq!(error, PeerError::NoBundle { expected: foreign, bundle: domain() });
}

#[test]
fn peer_that_is_not_trusted_or_valid_is_told_apart() {
    let mut untrusted = wfm();
    untrusted.bundle = Some(vec![self_signed(&authority("Root", &OTHER))]);
    assert!(matches!(
        presented(&untrusted, &expected()),
        Err(PeerError::NotTrusted { why, .. }) if *why == SvidError::UnknownIssuer
    ));
    let below = wfm_below();
    let leaf = CertificateDer::from(below.certificates().swap_remove(0));
    let anchors = bundle_of(&[self_signed(&below.issuers[1])]);
    let without_issuer = validate_peer(&[leaf], &expected(), &anchors, below.now);
    assert!(matches!(without_issuer, Err(PeerError::NotTrusted { .. })), "{without_issuer:?}");
    let mut response = wfm();
    response.now = at(NOW + DAY + 1);
    let (found, now, not_after) = (id(WFM), response.now, at(NOW + DAY));
    assert_eq!(presented(&response, &expected()), Err(PeerError::Expired { found, not_after, now }));
    response.now = at(NOW - MINUTE - 1);
    let (found, now, not_before) = (id(WFM), response.now, at(NOW - MINUTE));
    assert_eq!(presented(&response, &expected()), Err(PeerError::NotYetValid { found, not_before, now }));
    let mut early = wfm_below();
    early.intermediate().not_before = NOW + MINUTE;
    let (found, now, not_before) = (id(WFM), at(NOW), at(NOW + MINUTE));
    assert_eq!(presented(&early, &expected()), Err(PeerError::NotYetValid { found, not_before, now }));
}

#[test]
fn wfm_accepts_its_own_clients() {
    let of_wfm = ExpectedPeer::WfmClientOf(id(WFM));
    for (peer, is_client) in [
        ("spiffe://factory.example/margo/wfm/wfm-1/client/line-4", true),
        ("spiffe://factory.example/margo/wfm/wfm-1/client/line-5", true),
        ("spiffe://factory.example/margo/wfm/wfm-2/client/line-4", false),
        ("spiffe://factory.example/margo/wfm/wfm-1/client/line-4/x", false),
        ("spiffe://other.example/margo/wfm/wfm-1/client/line-4", false),
        (WFM, false),
        (DEVICE_ID, false),
    ] {
        let mut response = direct();
        san(&mut response, &[uri(peer)]);
        assert_eq!(presented(&response, &of_wfm).is_ok(), is_client, "{peer}");
    }
}
