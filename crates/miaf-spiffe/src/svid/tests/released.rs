//! SVIDs of WFM Clients, by the rules of released Margo (margo-now N2, N6, N7): in the form that
//! the MIS of Margo's sandbox gives them, and with every other algorithm that is allowed. That MIS
//! signs whatever a CSR names, so that nothing of it counts before it is validated here.

use SvidError as R;

use super::*;

pub(super) const CLIENT_ID: &str = "spiffe://factory.example/margo/wfm/wfm-1/client/dev-1";
const OTHER_CLIENT_ID: &str = "spiffe://factory.example/margo/wfm/wfm-1/client/dev-2";
const ALGORITHM: SvidError = R::Algorithm(Algorithms::Released);

/// An SVID as `mis mint x509` makes it: a subject, a SAN that is not critical, an authority key
/// identifier and no subject key identifier, signed by the one anchor.
fn minted() -> Response {
    let mut leaf = Template::new(name("margo.org"), &DEVICE, NOW, NOW + 90 * DAY);
    leaf.serial = (1..=16).collect();
    leaf.set(KEY_USAGE, true, usages(DIGITAL_SIGNATURE));
    leaf.set(EXTENDED_KEY_USAGE, false, purposes(&[SERVER_AUTH, CLIENT_AUTH]));
    leaf.set(BASIC_CONSTRAINTS, true, basic_constraints(false, None));
    leaf.set(AUTHORITY_KEY_ID, false, sequence(&[&tlv(0x80, &[&[7; 20]])]));
    leaf.set(SUBJECT_ALT_NAME, false, names(&[uri(CLIENT_ID)]));
    Response { leaf, issuers: vec![authority("margo.org", &ROOT)], rules: RELEASED, ..direct() }
}

/// The same from the CA of an operator, below its root.
pub(super) fn minted_by_intermediate() -> Response {
    let mut response = minted();
    response.issuers.insert(0, authority("Intermediate", &INTERMEDIATE));
    response
}

fn named_as(response: &mut Response, name: &str) {
    response.leaf.set(SUBJECT_ALT_NAME, false, names(&[uri(name)]));
}

#[test]
fn wfm_client_svid_of_the_sandbox_is_accepted() {
    let svid = minted().validate().unwrap();
    assert_eq!(svid.spiffe_id(), &id(CLIENT_ID));
    assert_eq!((svid.not_before(), svid.until()), (at(NOW), at(NOW + 90 * DAY)));
    let stored = Chain::from_pem(&svid.chain().to_pems()).unwrap();
    assert_eq!(X509Svid::from_stored(stored).unwrap(), svid, "what is stored reads back as itself");
    each_is_accepted(
        minted,
        vec![
            (
                "DNS names in addition to the URI",
                |a| {
                    let all = [dns("dev-1.factory.example"), uri(CLIENT_ID), dns("*.factory.example")];
                    a.leaf.set(SUBJECT_ALT_NAME, false, names(&all));
                },
                (),
            ),
            (
                "no subject, and a SAN that is critical",
                |a| {
                    a.leaf.subject = no_name();
                    san(a, &[uri(CLIENT_ID)]);
                },
                (),
            ),
            ("no extended key usage", |a| a.leaf.without(EXTENDED_KEY_USAGE), ()),
            ("a renewal for the same client", |a| a.renewing = Some(CLIENT_ID), ()),
            (
                "segments of every allowed character",
                |a| named_as(a, "spiffe://factory.example/margo/wfm/A-1_.b/client/..."),
                (),
            ),
            (
                "a client by the name of the word",
                |a| named_as(a, "spiffe://factory.example/margo/wfm/client/client/client"),
                (),
            ),
            ("the root appended", |a| a.with_root = true, ()),
        ],
    );
}

#[test]
fn released_algorithms_are_accepted() {
    fn root(response: &mut Response, key: &'static Key, signature: Signature) {
        response.root().key = key;
        let last = response.issuers.len() - 2;
        response.issuers[last].signed = Some(signature);
    }
    each_is_accepted(
        minted,
        vec![
            ("a P-384 key", |a| a.leaf.key = &P384, ()),
            ("an Ed25519 key", |a| a.leaf.key = &ED25519, ()),
            ("an RSA key of 3072 bits", |a| a.leaf.key = &RSA_3072, ()),
            ("an RSA key of 3072 bits that is for PSS alone", |a| a.leaf.key = &RSA_3072_FOR_PSS, ()),
            (
                "a P-384 issuer",
                |a| {
                    a.root().key = &P384;
                    a.leaf.signed = Some(Signature::EcdsaSha384);
                },
                (),
            ),
            ("an Ed25519 issuer", |a| a.root().key = &ED25519, ()),
            ("an RSA issuer with PSS", |a| a.root().key = &RSA_3072, ()),
            ("an RSA issuer with a key for PSS alone", |a| a.root().key = &RSA_3072_FOR_PSS, ()),
            (
                "an RSA issuer with a key for PSS alone and with these parameters",
                |a| a.root().key = &RSA_3072_FOR_THIS_PSS,
                (),
            ),
            (
                "an RSA issuer with PKCS#1 v1.5",
                |a| {
                    a.root().key = &RSA_3072;
                    a.leaf.signed = Some(Signature::Pkcs1Sha256);
                },
                (),
            ),
            (
                "an RSA issuer with PKCS#1 v1.5 that leaves out the parameter",
                |a| {
                    a.root().key = &RSA_3072;
                    a.leaf.signed = Some(Signature::Pkcs1Sha256WithoutNull);
                },
                (),
            ),
            (
                "a root whose signature on itself is of another algorithm",
                |a| {
                    a.root().key = &RSA_3072;
                    a.root().signed = Some(Signature::PssSha384);
                },
                (),
            ),
        ],
    );
    each_is_accepted(
        minted_by_intermediate,
        vec![
            ("an intermediate", |_| {}, ()),
            (
                "a P-384 intermediate",
                |a| {
                    a.intermediate().key = &P384;
                    a.leaf.signed = Some(Signature::EcdsaSha384);
                },
                (),
            ),
            ("an Ed25519 intermediate", |a| a.intermediate().key = &ED25519, ()),
            ("an RSA intermediate", |a| a.intermediate().key = &RSA_3072, ()),
            ("an intermediate signed with P-384", |a| root(a, &P384, Signature::EcdsaSha384), ()),
            ("an intermediate signed with Ed25519", |a| root(a, &ED25519, Signature::Ed25519), ()),
            ("an intermediate signed with PSS", |a| root(a, &RSA_3072, Signature::PssSha256), ()),
            ("an intermediate signed with PKCS#1 v1.5", |a| root(a, &RSA_3072, Signature::Pkcs1Sha256), ()),
        ],
    );
}

#[test]
fn other_algorithms_are_refused_also_under_released_rules() {
    fn rsa(response: &mut Response, signature: Signature) {
        response.root().key = &RSA_3072;
        response.leaf.signed = Some(signature);
    }
    each_is_refused(
        minted,
        vec![
            ("an RSA key of 2048 bits", |a| a.leaf.key = &RSA_2048, R::WeakRsa(2048)),
            ("an RSA key of 2048 bits for PSS", |a| a.leaf.key = &RSA_2048_FOR_PSS, R::WeakRsa(2048)),
            ("an RSA key that cannot be read", |a| a.leaf.key = &DAMAGED_RSA, ALGORITHM),
            ("a P-521 key", |a| a.leaf.key = &P521, ALGORITHM),
            ("a key on an unknown curve", |a| a.leaf.key = &UNKNOWN_CURVE, ALGORITHM),
            ("an Ed448 key", |a| a.leaf.key = &ED448, ALGORITHM),
            ("an RSA issuer of 2048 bits", |a| a.root().key = &RSA_2048, R::WeakRsa(2048)),
            (
                "an RSA issuer of 2048 bits with PKCS#1 v1.5",
                |a| {
                    a.root().key = &RSA_2048;
                    a.leaf.signed = Some(Signature::Pkcs1Sha256);
                },
                R::WeakRsa(2048),
            ),
            (
                "a P-384 issuer that signs with SHA-256, as openssl does by default",
                |a| {
                    a.root().key = &P384;
                    a.leaf.signed = Some(Signature::EcdsaSha256);
                },
                ALGORITHM,
            ),
            (
                "a P-256 issuer that signs with SHA-384",
                |a| a.leaf.signed = Some(Signature::EcdsaSha384),
                ALGORITHM,
            ),
            ("ECDSA with SHA-512", |a| a.leaf.signed = Some(named("1.2.840.10045.4.3.4")), ALGORITHM),
            ("ECDSA with SHA-1", |a| a.leaf.signed = Some(named("1.2.840.10045.4.1")), ALGORITHM),
            ("PKCS#1 v1.5 with SHA-1", |a| rsa(a, named_with_null("1.2.840.113549.1.1.5")), ALGORITHM),
            ("PKCS#1 v1.5 with MD5", |a| rsa(a, named_with_null("1.2.840.113549.1.1.4")), ALGORITHM),
            ("PKCS#1 v1.5 with SHA-384", |a| rsa(a, named_with_null("1.2.840.113549.1.1.12")), ALGORITHM),
            ("PSS with SHA-384", |a| rsa(a, Signature::PssSha384), ALGORITHM),
            ("PSS with SHA-1", |a| rsa(a, pss(SHA_1, SHA_1, 20)), ALGORITHM),
            ("PSS with another salt", |a| rsa(a, pss(SHA_256, SHA_256, 20)), ALGORITHM),
            (
                "PKCS#1 v1.5 by a key for PSS alone",
                |a| {
                    a.root().key = &RSA_3072_FOR_PSS;
                    a.leaf.signed = Some(Signature::Pkcs1Sha256);
                },
                // As of a CA that changed its key and kept its name.
                R::UnknownIssuer,
            ),
            (
                "Ed25519 with a parameter that it does not have",
                |a| {
                    a.root().key = &ED25519;
                    a.leaf.signed = Some(named_with_null("1.3.101.112"));
                },
                ALGORITHM,
            ),
            (
                "a damaged signature of an Ed25519 key",
                |a| {
                    a.root().key = &ED25519;
                    a.leaf.spoiled = |der| *der.last_mut().unwrap() ^= 1;
                },
                R::UnknownIssuer,
            ),
            (
                "a damaged signature with PKCS#1 v1.5",
                |a| {
                    rsa(a, Signature::Pkcs1Sha256);
                    a.leaf.spoiled = |der| *der.last_mut().unwrap() ^= 1;
                },
                R::UnknownIssuer,
            ),
            (
                "a bundle from before the CA went from P-256 to RSA and did not change its name",
                |a| {
                    a.bundle = Some(vec![self_signed(a.root())]);
                    rsa(a, Signature::Pkcs1Sha256);
                },
                R::UnknownIssuer,
            ),
            (
                "a bundle from before the CA went from Ed25519 to P-256 and did not change its name",
                |a| a.bundle = Some(vec![self_signed(&authority("margo.org", &ED25519))]),
                R::UnknownIssuer,
            ),
        ],
    );
    each_is_refused(
        minted_by_intermediate,
        vec![
            ("an intermediate of 2048 bits", |a| a.intermediate().key = &RSA_2048, R::WeakRsa(2048)),
            ("a root of 2048 bits above it", |a| a.root().key = &RSA_2048, R::WeakRsa(2048)),
            (
                "an intermediate signed with PSS and SHA-384",
                |a| {
                    a.root().key = &RSA_3072;
                    a.intermediate().signed = Some(Signature::PssSha384);
                },
                ALGORITHM,
            ),
        ],
    );
}

#[test]
fn wfm_client_svid_of_another_wfm_is_refused() {
    let domain = domain();
    let response = minted();
    let chain = Chain::from_pem(&response.pems()).unwrap();
    let bundle = bundle_of(&response.issuers.last().map(self_signed).into_iter().collect::<Vec<_>>());
    for (wfm, is_its) in [
        ("spiffe://factory.example/margo/wfm/wfm-1", true),
        ("spiffe://factory.example/margo/wfm/wfm-2", false),
        ("spiffe://factory.example/margo/wfm/wfm", false),
        ("spiffe://factory.example/margo/wfm/wfm-11", false),
        ("spiffe://factory.example/margo/wfm/WFM-1", false),
        ("spiffe://factory.example/margo/wfm/wfm-1/client/dev-1", false),
    ] {
        let want = id(wfm);
        let expected = expectation(&domain, response.rules, None, &response.leaf.key.spki);
        let expected = Expectation { wfm: Some(&want), ..expected };
        let validated = validate(&chain, &expected, &bundle, response.now).map(|_| ());
        let outcome = if is_its { Ok(()) } else { Err(R::OtherWfm { got: id(CLIENT_ID), want }) };
        assert_eq!(validated, outcome, "{wfm}");
    }
}

#[test]
fn wfm_client_svid_with_another_name_is_refused() {
    const WFM: &str = "spiffe://factory.example/margo/wfm/wfm-1";
    const NO_CLIENT: &str = "spiffe://factory.example/margo/wfm/wfm-1/client";
    const DEEPER: &str = "spiffe://factory.example/margo/wfm/wfm-1/client/dev-1/x";
    const UPPERCASE: &str = "spiffe://factory.example/margo/wfm/wfm-1/Client/dev-1";
    const NO_MARGO: &str = "spiffe://factory.example/wfm/wfm-1/client/dev-1";
    const FOREIGN: &str = "spiffe://other.example/margo/wfm/wfm-1/client/dev-1";
    const ABOVE: &str = "spiffe://example/margo/wfm/wfm-1/client/dev-1";
    let not_a_client = |uri| R::OtherKindOfName { got: id(uri), want: NameKind::WfmClient };
    let foreign = |uri| R::OtherTrustDomain { got: id(uri), want: domain() };
    each_is_refused(
        minted,
        vec![
            ("a device", |a| named_as(a, DEVICE_ID), not_a_client(DEVICE_ID)),
            ("a WFM", |a| named_as(a, WFM), not_a_client(WFM)),
            ("no client", |a| named_as(a, NO_CLIENT), not_a_client(NO_CLIENT)),
            ("a segment too many", |a| named_as(a, DEEPER), not_a_client(DEEPER)),
            ("an uppercase word", |a| named_as(a, UPPERCASE), not_a_client(UPPERCASE)),
            ("a path that is not under /margo", |a| named_as(a, NO_MARGO), not_a_client(NO_MARGO)),
            ("another trust domain, and the chain validates", |a| named_as(a, FOREIGN), foreign(FOREIGN)),
            ("the trust domain above this one", |a| named_as(a, ABOVE), foreign(ABOVE)),
            (
                "another client than the current or the configured one",
                |a| a.renewing = Some(OTHER_CLIENT_ID),
                R::OtherIdentity { got: id(CLIENT_ID), want: id(OTHER_CLIENT_ID) },
            ),
            ("no SAN", |a| a.leaf.without(SUBJECT_ALT_NAME), R::UriCount(0)),
            (
                "two URIs",
                |a| a.leaf.set(SUBJECT_ALT_NAME, false, names(&[uri(CLIENT_ID), uri(OTHER_CLIENT_ID)])),
                R::UriCount(2),
            ),
        ],
    );
}

/// Several CAs issue it so: it is accepted, and told.
#[test]
fn names_that_are_not_critical_are_accepted_and_told() {
    assert!(minted().validate().unwrap().names_are_critical(), "it has a subject");
    for critical in [true, false] {
        let mut response = minted();
        response.leaf.subject = no_name();
        response.leaf.set(SUBJECT_ALT_NAME, critical, names(&[uri(CLIENT_ID)]));
        assert_eq!(response.validate().unwrap().names_are_critical(), critical);
    }
}

/// The sandbox's MIS signs all of these (`sandbox-facts.md`).
#[test]
fn wfm_client_name_that_is_no_spiffe_id_is_refused() {
    use SpiffeIdError as E;
    for (found, why) in [
        ("spiffe://factory.example/margo/wfm/wfm-1/client/..", E::DotSegment),
        ("spiffe://factory.example/margo/wfm/wfm-1/client/.", E::DotSegment),
        ("spiffe://factory.example/margo/wfm/../client/dev-1", E::DotSegment),
        ("spiffe://factory.example/margo/wfm/x/../wfm-1/client/dev-1", E::DotSegment),
        ("spiffe://factory.example/margo/wfm/wfm-1/client/dev~1", E::PathCharacter),
        ("spiffe://factory.example/margo/wfm/~/client/dev-1", E::PathCharacter),
        ("spiffe://factory.example/margo/wfm/wfm-1/client/%41", E::PathCharacter),
        ("spiffe://factory.example/margo/wfm/wfm-1/client/%2e%2e", E::PathCharacter),
        ("spiffe://factory.example/margo/wfm/wfm-1%2fclient/dev-1", E::PathCharacter),
        ("spiffe://factory.example/margo/wfm/wfm-1/client/dev+1", E::PathCharacter),
        ("spiffe://factory.example/margo/wfm/wfm-1/client/dev-1?x", E::PathCharacter),
        ("spiffe://factory.example/margo/wfm/wfm-1/client/dev 1", E::PathCharacter),
        ("spiffe://factory.example/margo/wfm/wfm-1/client/", E::EmptySegment),
        ("spiffe://factory.example/margo/wfm//client/dev-1", E::EmptySegment),
        ("spiffe://factory.example", E::NoPath),
        ("spiffe://factory.example/", E::EmptySegment),
        ("spiffe://Factory.example/margo/wfm/wfm-1/client/dev-1", E::TrustDomain),
        ("https://factory.example/margo/wfm/wfm-1/client/dev-1", E::Scheme),
        ("Spiffe://factory.example/margo/wfm/wfm-1/client/dev-1", E::Scheme),
    ] {
        let mut response = minted();
        named_as(&mut response, found);
        assert_eq!(response.validate(), Err(not_a_spiffe_id(found, why)), "{found}");
    }
}

#[test]
fn wfm_client_svid_that_may_issue_is_refused() {
    each_is_refused(
        minted,
        vec![
            (
                "cA is true",
                |a| a.leaf.set(BASIC_CONSTRAINTS, true, basic_constraints(true, None)),
                R::CertificateAuthority,
            ),
            (
                "keyCertSign",
                |a| a.leaf.set(KEY_USAGE, true, usages(DIGITAL_SIGNATURE | KEY_CERT_SIGN)),
                R::MaySignCertificates,
            ),
            (
                "cRLSign",
                |a| a.leaf.set(KEY_USAGE, true, usages(DIGITAL_SIGNATURE | CRL_SIGN)),
                R::MaySignCertificates,
            ),
            ("no keyUsage", |a| a.leaf.without(KEY_USAGE), R::NoKeyUsage),
        ],
    );
}

/// The kind of name and the algorithms are two rules, and neither stands for the other.
#[test]
fn name_and_algorithms_are_validated_apart() {
    for (rules, name, algorithms) in [
        (MIAF_V0, DEVICE_ID, Algorithms::MiafV0),
        ((NameKind::Device, Algorithms::Released), DEVICE_ID, Algorithms::Released),
        ((NameKind::WfmClient, Algorithms::MiafV0), CLIENT_ID, Algorithms::MiafV0),
        (RELEASED, CLIENT_ID, Algorithms::Released),
    ] {
        let mut response = minted();
        response.rules = rules;
        let other = if name == CLIENT_ID { DEVICE_ID } else { CLIENT_ID };
        named_as(&mut response, other);
        let refused = Err(R::OtherKindOfName { got: id(other), want: rules.0 });
        assert_eq!(response.validate(), refused, "{rules:?}");
        named_as(&mut response, name);
        assert!(response.validate().is_ok(), "{rules:?}");
        response.root().key = &ED25519;
        let validated = response.validate();
        match algorithms {
            Algorithms::MiafV0 => assert_eq!(validated, Err(R::Algorithm(Algorithms::MiafV0)), "{rules:?}"),
            Algorithms::Released => assert!(validated.is_ok(), "{rules:?}: {validated:?}"),
        }
    }
}

#[test]
fn current_svid_is_trusted_by_its_own_algorithms() {
    for (good, is_trusted_by_p384) in [(direct as fn() -> Response, false), (minted, true)] {
        let mut response = good();
        response.issuers.insert(0, authority("Intermediate", &INTERMEDIATE));
        let other_root = authority("Other", &P384);
        response.issuers[0].signed = None;
        let mut cross_signed = response.issuers[0].clone();
        cross_signed.signed = Some(Signature::EcdsaSha384);
        cross_signed.not_after = NOW + DAY / 2;
        response.appended = vec![cross_signed.certify(&other_root)];
        let validated = response.validate().unwrap();
        let stored = X509Svid::from_stored(Chain::from_pem(&response.pems()).unwrap()).unwrap();
        let (root, other_root) = (self_signed(response.root()), self_signed(&other_root));
        for svid in [validated, stored] {
            assert!(is_trusted(&svid, &bundle_of(std::slice::from_ref(&root)), at(NOW)));
            let other = bundle_of(std::slice::from_ref(&other_root));
            assert_eq!(is_trusted(&svid, &other, at(NOW)), is_trusted_by_p384);
            assert_eq!(trust_path(&svid, &other, at(NOW)).is_some(), is_trusted_by_p384);
            let until = if is_trusted_by_p384 { at(NOW + DAY / 2) } else { svid.not_after() };
            assert_eq!(svid.under(&other, at(NOW)).until(), until);
        }
    }
}

#[test]
fn leaf_is_signed_by_an_anchor_or_by_an_intermediate() {
    let (mut direct, mut below) = (minted(), minted_by_intermediate());
    let root = self_signed(direct.root());
    let intermediate = below.issuers[0].certify(&below.issuers[1]);
    let is_signed = |response: &Response, anchors: &[Vec<u8>]| {
        let svid = X509Svid::from_stored(Chain::from_pem(&response.pems()).unwrap()).unwrap();
        svid.is_signed_by_anchor(&bundle_of(anchors))
    };
    assert!(is_signed(&direct, std::slice::from_ref(&root)));
    assert!(!is_signed(&below, std::slice::from_ref(&root)), "the root signed the intermediate");
    assert!(is_signed(&below, std::slice::from_ref(&intermediate)), "an anchor need not be a root");
    assert!(is_signed(&below, &[root.clone(), intermediate]), "the second of two");
    assert!(!is_signed(&direct, &[]));
    assert!(!is_signed(&direct, &[self_signed(&authority("Other", &ROOT))]), "another name");
    assert!(!is_signed(&direct, &[self_signed(&authority("margo.org", &OTHER))]), "another key");
    let mut end_entity = authority("margo.org", &ROOT);
    end_entity.without(BASIC_CONSTRAINTS);
    assert!(!is_signed(&direct, &[self_signed(&end_entity)]), "an anchor that is no authority");
    // It is about who signed, and not about the clock.
    (direct.leaf.not_before, direct.leaf.not_after) = (NOW - 90 * DAY, NOW - DAY);
    assert!(is_signed(&direct, std::slice::from_ref(&root)), "an SVID that has expired");
    below.with_root = true;
    assert!(!is_signed(&below, &[root]), "with the root in the chain");
}

#[test]
fn refused_name_is_reported_with_both_kinds() {
    let told = |rules, name: &str| {
        let mut response = minted();
        response.rules = rules;
        named_as(&mut response, name);
        response.validate().unwrap_err().to_string()
    };
    assert_eq!(
        told(RELEASED, DEVICE_ID),
        format!(
            "the certificate names {DEVICE_ID}, which is a device (/margo/device/<lowercase uuid>), but \
             this identity is a WFM Client (/margo/wfm/<wfm-id>/client/<wfm-client-id>)"
        )
    );
    assert_eq!(
        told(MIAF_V0, CLIENT_ID),
        format!(
            "the certificate names {CLIENT_ID}, which is a WFM Client \
             (/margo/wfm/<wfm-id>/client/<wfm-client-id>), but this identity is a device \
             (/margo/device/<lowercase uuid>)"
        )
    );
    let of_no_form = told(RELEASED, "spiffe://factory.example/x");
    assert!(of_no_form.contains("/x, which is of no form that Margo defines, but this"), "{of_no_form}");
    assert!(ALGORITHM.to_string().contains("P-384 with SHA-384"), "{ALGORITHM}");
    let of_v0 = R::Algorithm(Algorithms::MiafV0).to_string();
    assert!(of_v0.ends_with("is neither ECDSA P-256 with SHA-256 nor RSA-PSS with SHA-256"), "{of_v0}");
}

#[test]
fn chain_in_der_has_the_limits_of_one_in_pem() {
    let of = |certificates: Vec<Vec<u8>>| {
        let certificates: Vec<_> = certificates.into_iter().map(CertificateDer::from).collect();
        Chain::from_der(&certificates)
    };
    let mut response = minted_by_intermediate();
    response.with_root = true;
    let certificates = response.certificates();
    let in_pem = Chain::from_pem(&of(certificates.clone()).unwrap().to_pems());
    assert_eq!(of(certificates), in_pem);
    assert_eq!(of(Vec::new()), Err(R::EmptyChain));
    let one = response.certificates().remove(0);
    assert!(of(vec![one.clone(); 6]).is_ok());
    assert_eq!(of(vec![one.clone(); 7]), Err(R::LongChain(7)));
    assert_eq!(of(vec![one.clone(), vec![0x30, 0]]), Err(R::Malformed { index: 1 }));
    assert_eq!(of(vec![[one, vec![0]].concat()]), Err(R::Malformed { index: 0 }));
    response.leaf.add(UNKNOWN, false, vec![0; 16 * 1024]);
    assert_eq!(of(response.certificates()), Err(R::Malformed { index: 0 }));
}

#[test]
fn pem_text_of_several_certificates_is_a_chain() {
    let response = minted_by_intermediate();
    let pems = response.pems();
    let chain = Chain::from_pem(&pems).unwrap();
    let explained = format!("Certificate:\n    Data:\n{}subject=CN=x\n\n{}", pems[0], pems[1].trim_end());
    for text in [pems.concat(), explained, pems.concat().replace('\n', "\r\n")] {
        assert_eq!(Chain::from_pem_text(text.as_bytes()).as_ref(), Ok(&chain), "{text}");
    }
    assert_eq!(Chain::from_pem_text(pems[0].as_bytes()).map(|chain| chain.certificates().len()), Ok(1));
    let refused = |text: &str| Chain::from_pem_text(text.as_bytes()).unwrap_err();
    let key = "-----BEGIN PRIVATE KEY-----\nMAAwAA==\n-----END PRIVATE KEY-----\n";
    let not_pem = |index, why: &str| R::NotPem { index, why: why.into() };
    assert_eq!(refused(""), not_pem(0, "it is empty"));
    assert_eq!(refused("text"), not_pem(0, "it has no -----BEGIN line"));
    assert_eq!(refused(&format!("{}{key}", pems[0])), not_pem(1, "it is a PRIVATE KEY"));
    assert_eq!(refused(&format!("{key}{}", pems[0])), not_pem(0, "it is a PRIVATE KEY"));
    assert_eq!(
        refused(&pems[0].replace("CERTIFICATE", "CERTIFICATE REQUEST")),
        not_pem(0, "it is a CERTIFICATE REQUEST")
    );
    assert!(matches!(refused(&pems[0][..200]), R::NotPem { index: 0, .. }));
    assert_eq!(refused(&pems[0].repeat(7)), R::LongChain(7));
    assert!(Chain::from_pem_text(pems[0].repeat(6).as_bytes()).is_ok());
    let damaged = "-----BEGIN CERTIFICATE-----\nMAAwAA==\n-----END CERTIFICATE-----\n";
    assert_eq!(refused(&format!("{}{damaged}", pems[0])), R::Malformed { index: 1 });
}

#[test]
fn trust_path_has_the_intermediates_that_lead_to_the_anchor() {
    let mut response = minted_by_intermediate();
    let withdrawn = authority("Withdrawn", &OTHER);
    response.appended = vec![response.issuers[0].certify(&withdrawn)];
    let svid = response.validate().unwrap();
    let intermediate = response.issuers[0].certify(&response.issuers[1]);
    let in_chain = |index: usize| svid.chain().certificates()[index].clone();
    let path =
        |anchors: &[Vec<u8>]| trust_path(&svid, &bundle_of(anchors), at(NOW)).map(|path| path.intermediates);
    assert_eq!(path(&[self_signed(response.root())]), Some(vec![in_chain(1)]));
    assert_eq!(path(&[self_signed(&withdrawn)]), Some(vec![in_chain(2)]));
    assert_eq!(path(&[intermediate]), Some(Vec::new()), "the intermediate is the anchor");
    assert_eq!(path(&[]), None);
    let direct = minted();
    let svid = direct.validate().unwrap();
    let bundle = bundle_of(&[self_signed(&direct.issuers[0])]);
    assert_eq!(trust_path(&svid, &bundle, at(NOW)).unwrap().intermediates, []);
}
