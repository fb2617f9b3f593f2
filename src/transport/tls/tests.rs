//! Handshakes in memory: every form of trust meets every kind of chain.

use super::*;
use crate::transport::server_verifier::TrustSource::{self, Provisioned, PublicStore};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose as Purpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use ring::digest;
use rustls::version::{TLS12, TLS13};
use rustls::{CertificateError, ClientConnection, ServerConfig, ServerConnection, SupportedProtocolVersion};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, TrustAnchor};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

fn authority(name: &str) -> Authority {
    CertifiedIssuer::self_signed(ca_params(name), KeyPair::generate().unwrap()).unwrap()
}

fn subordinate(params: CertificateParams, issuer: &Authority) -> Authority {
    CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), issuer).unwrap()
}

/// A server's certificate and its key.
struct Server {
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

impl Server {
    fn params() -> CertificateParams {
        CertificateParams::new(["mis.example".into(), "192.0.2.1".into()]).unwrap()
    }

    fn by(issuer: &Authority) -> Self {
        Self::with(Self::params(), Some(issuer))
    }

    fn with(params: CertificateParams, issuer: Option<&Authority>) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = match issuer {
            Some(issuer) => params.signed_by(&key, issuer),
            None => params.self_signed(&key),
        };
        Self { certificate: certificate.unwrap().der().clone(), key }
    }

    fn private(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.serialize_der()))
    }
}

fn pin(certificate: &CertificateDer<'_>) -> [u8; 32] {
    let parsed = webpki::EndEntityCert::try_from(certificate).unwrap();
    digest::digest(&digest::SHA256, &parsed.subject_public_key_info()).as_ref().try_into().unwrap()
}

fn anchors(authorities: &[&Authority]) -> Vec<TrustAnchor<'static>> {
    authorities.iter().map(|a| webpki::anchor_from_trusted_cert(a.der()).unwrap().to_owned()).collect()
}

fn ca_file(authorities: &[&Authority]) -> LoadedTrust {
    LoadedTrust { provisioned: anchors(authorities), ..LoadedTrust::default() }
}

fn system(authorities: &[&Authority]) -> LoadedTrust {
    LoadedTrust { system: anchors(authorities), ..LoadedTrust::default() }
}

fn pins(of: &[&CertificateDer<'_>]) -> LoadedTrust {
    LoadedTrust { pins: of.iter().map(|certificate| pin(certificate)).collect(), ..LoadedTrust::default() }
}

/// All of them at once.
fn and(one: LoadedTrust, other: LoadedTrust) -> LoadedTrust {
    LoadedTrust {
        ca_file: None,
        certificates: [one.certificates, other.certificates].concat(),
        provisioned: [one.provisioned, other.provisioned].concat(),
        system: [one.system, other.system].concat(),
        pins: [one.pins, other.pins].concat(),
        unused: None,
    }
}

/// The agent meets a server that presents these certificates after its own.
fn meet_as(
    name: &str,
    trust: LoadedTrust,
    factory: Option<&Authority>,
    server: &Server,
    others: &[&CertificateDer<'static>],
    version: &'static SupportedProtocolVersion,
) -> Result<TrustSource, (rustls::Error, String)> {
    let identity = factory.map(|factory| {
        let leaf = Server::by(factory);
        let key = rustls::crypto::ring::sign::any_supported_type(&leaf.private()).unwrap();
        Arc::new(CertifiedKey::new(vec![leaf.certificate, factory.der().clone()], key))
    });
    let observation = Arc::new(HandshakeObservation::default());
    let config = Arc::new(
        client(provisioned(Arc::new(trust), observation.clone()), identity, observation.clone(), false)
            .unwrap(),
    );
    let mut client = ClientConnection::new(config, name.to_owned().try_into().unwrap()).unwrap();
    let mut chain = vec![server.certificate.clone()];
    chain.extend(others.iter().map(|&certificate| certificate.clone()));
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, server.private())
        .unwrap();
    let mut server = ServerConnection::new(Arc::new(config)).unwrap();
    let mut shake = || {
        while client.is_handshaking() {
            let (mut out, mut back) = (Vec::new(), Vec::new());
            while client.wants_write() {
                client.write_tls(&mut out).unwrap();
            }
            let mut out = out.as_slice();
            while !out.is_empty() {
                server.read_tls(&mut out).unwrap();
                server.process_new_packets()?;
            }
            while server.wants_write() {
                server.write_tls(&mut back).unwrap();
            }
            let mut back = back.as_slice();
            while !back.is_empty() {
                client.read_tls(&mut back).unwrap();
                client.process_new_packets()?;
            }
        }
        Ok(())
    };
    match shake() {
        Ok(()) => Ok(observation.trust_source()),
        Err(e) => Err((e, observation.untrusted().unwrap_or_default().to_string())),
    }
}

fn meet(
    trust: LoadedTrust,
    server: &Server,
    others: &[&CertificateDer<'static>],
) -> Result<TrustSource, String> {
    meet_as("mis.example", trust, None, server, others, &TLS13).map_err(|(_, why)| why)
}

#[test]
fn only_tls_1_3_is_offered() {
    let root = authority("root");
    let server = Server::by(&root);
    let meet = |version| meet_as("mis.example", ca_file(&[&root]), None, &server, &[], version);
    meet(&TLS13).unwrap();
    assert!(matches!(meet(&TLS12), Err((rustls::Error::PeerIncompatible(_), _))));
}

#[test]
fn factory_issuer_authenticates_no_server() {
    let (trusted, factory) = (authority("same name"), authority("same name"));
    let meet = |server| {
        let server = Server::by(server);
        meet_as("mis.example", ca_file(&[&trusted]), Some(&factory), &server, &[], &TLS13)
    };
    meet(&trusted).unwrap();
    let (error, why) = meet(&factory).unwrap_err();
    assert!(
        matches!(error, rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)),
        "a CA of the same name is another CA: {error:?}"
    );
    assert!(why.contains("not issued by a CA in ca_file (unknown issuer)"), "{why}");
}

/// root → issuer → server, and others that have nothing to do with them.
struct Cast {
    root: Authority,
    issuer: Authority,
    server: Server,
    stranger: Authority,
    stray: Server,
}

impl Cast {
    fn new() -> Self {
        let root = authority("root");
        let issuer = subordinate(ca_params("issuer"), &root);
        let server = Server::by(&issuer);
        let stranger = authority("stranger");
        let stray = Server::by(&stranger);
        Self { root, issuer, server, stranger, stray }
    }

    fn meet(&self, trust: LoadedTrust, more: &[&CertificateDer<'static>]) -> Result<TrustSource, String> {
        let others = [&[self.issuer.der()], more].concat();
        meet(trust, &self.server, &others)
    }
}

#[test]
fn every_form_and_combination_of_trust_accepts_the_right_server() {
    let cast = Cast::new();
    let (root, issuer, leaf) = (cast.root.der(), cast.issuer.der(), &cast.server.certificate);
    let stranger = cast.stranger.der();
    for (what, trust, more, want) in [
        ("ca_file", ca_file(&[&cast.root]), &[][..], Provisioned),
        ("ca_file with the intermediate", ca_file(&[&cast.issuer]), &[], Provisioned),
        ("one of several", ca_file(&[&cast.stranger, &cast.root]), &[], Provisioned),
        ("system roots", system(&[&cast.root]), &[], PublicStore),
        ("both, ours", and(ca_file(&[&cast.root]), system(&[&cast.stranger])), &[], Provisioned),
        ("both, public", and(ca_file(&[&cast.stranger]), system(&[&cast.root])), &[], PublicStore),
        ("in both stores", and(ca_file(&[&cast.root]), system(&[&cast.root])), &[], Provisioned),
        ("pin of the leaf", pins(&[leaf]), &[], Provisioned),
        ("pin of the intermediate", pins(&[issuer]), &[], Provisioned),
        ("pin of the root, presented", pins(&[root]), &[root], Provisioned),
        ("one pin of several", pins(&[stranger, issuer]), &[], Provisioned),
        ("anchor and pin of the leaf", and(ca_file(&[&cast.root]), pins(&[leaf])), &[], Provisioned),
        (
            "anchor and pin of the intermediate",
            and(ca_file(&[&cast.root]), pins(&[issuer])),
            &[],
            Provisioned,
        ),
        ("anchor and its pin, not presented", and(ca_file(&[&cast.root]), pins(&[root])), &[], Provisioned),
        ("system root and pin", and(system(&[&cast.root]), pins(&[root])), &[], Provisioned),
        (
            "all three, public path, pinned",
            and(and(ca_file(&[&cast.stranger]), system(&[&cast.root])), pins(&[issuer])),
            &[],
            Provisioned,
        ),
        ("a stranger appended does no harm", pins(&[leaf]), &[stranger], Provisioned),
    ] {
        assert_eq!(cast.meet(trust, more), Ok(want), "{what}");
    }
}

/// The pin of an anchor is made from what webpki keeps of it.
#[test]
fn pin_of_an_anchor_is_that_of_its_certificate_whatever_the_key() {
    let rsa = |pkcs8: &[u8]| KeyPair::try_from(pkcs8).unwrap();
    for key in [
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap(),
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap(),
        KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap(),
        rsa(include_bytes!("../../../tests/data/test-key-rsa-2048.pk8.der")),
        rsa(include_bytes!("../../../tests/data/test-key-rsa-3072.pk8.der")),
    ] {
        let root = CertifiedIssuer::self_signed(ca_params("root"), key).unwrap();
        let server = Server::by(&root);
        assert_eq!(meet(and(ca_file(&[&root]), pins(&[root.der()])), &server, &[]), Ok(Provisioned));
        assert_eq!(meet(pins(&[root.der()]), &server, &[root.der()]), Ok(Provisioned));
    }
}

#[test]
fn every_form_of_trust_refuses_the_wrong_server_with_a_reason() {
    let cast = Cast::new();
    let (root, leaf) = (cast.root.der(), &cast.server.certificate);
    let (stranger, stray) = (cast.stranger.der(), &cast.stray.certificate);
    let unpinned = "is pinned in spki_sha256";
    let rooted = || ca_file(&[&cast.root]);
    for (what, trust, more, why) in [
        ("another CA", ca_file(&[&cast.stranger]), &[][..], "a CA in ca_file (unknown issuer)"),
        ("its root presented", ca_file(&[&cast.stranger]), &[root], "unknown issuer"),
        (
            "another public CA",
            system(&[&cast.stranger]),
            &[],
            "operating system's store (system_roots) (unknown",
        ),
        (
            "neither",
            and(ca_file(&[&cast.stranger]), system(&[&cast.stranger])),
            &[],
            "ca_file or in the operating system's store",
        ),
        ("another pin", pins(&[stranger]), &[], unpinned),
        // T1: an unrelated pinned certificate appended to the chain proves nothing.
        (
            "the pinned CA appended",
            pins(&[stranger]),
            &[stranger],
            "not issued by a pinned CA (unknown issuer)",
        ),
        ("a pinned server appended", pins(&[stray]), &[stray], "is not a CA's"),
        ("anchor good, pin not presented", and(rooted(), pins(&[stranger])), &[], unpinned),
        ("anchor good, pin appended", and(rooted(), pins(&[stranger])), &[stranger], unpinned),
        ("anchor good, pinned server appended", and(rooted(), pins(&[stray])), &[stray], unpinned),
        ("pin good, anchor not", and(ca_file(&[&cast.stranger]), pins(&[leaf])), &[], "unknown issuer"),
        ("public root good, pin not", and(system(&[&cast.root]), pins(&[stranger])), &[], unpinned),
        ("pin of the root, not presented", pins(&[root]), &[], unpinned),
    ] {
        let refused = cast.meet(trust, more).unwrap_err();
        assert!(refused.contains(why), "{what}: {refused}");
    }
}

#[test]
fn presented_keys_are_listed_for_comparison() {
    let cast = Cast::new();
    let refused = cast.meet(pins(&[cast.stranger.der()]), &[]).unwrap_err();
    let base64 =
        |certificate| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, pin(certificate));
    let listed = format!("{} {}", base64(&cast.server.certificate), base64(cast.issuer.der()));
    assert!(refused.ends_with(&listed), "{refused}");

    // One that presents many is not quoted at length.
    let many: Vec<_> = (0..40).map(|_| cast.root.der()).collect();
    let refused = cast.meet(pins(&[cast.stranger.der()]), &many).unwrap_err();
    assert!(refused.contains("it presented 42 certificates") && refused.len() < 600, "{refused}");
}

#[test]
fn names_and_addresses_are_matched_under_every_form_of_trust() {
    let cast = Cast::new();
    let issuer = cast.issuer.der();
    let forms: [fn(&Cast) -> LoadedTrust; 5] = [
        |cast| ca_file(&[&cast.root]),
        |cast| system(&[&cast.root]),
        |cast| pins(&[&cast.server.certificate]),
        |cast| pins(&[cast.issuer.der()]),
        |cast| and(ca_file(&[&cast.root]), pins(&[&cast.server.certificate])),
    ];
    for (index, form) in forms.into_iter().enumerate() {
        let meet = |name: &str| meet_as(name, form(&cast), None, &cast.server, &[issuer], &TLS13);
        for name in ["mis.example", "192.0.2.1"] {
            assert!(meet(name).is_ok(), "{index} {name}");
        }
        for name in ["other.example", "example", "a.mis.example", "192.0.2.2", "2001:db8::1"] {
            let is_pinned_address = index >= 2 && !name.ends_with("example");
            match meet(name) {
                Ok(_) => assert!(is_pinned_address, "{index} {name}"),
                Err((_, why)) => {
                    assert!(!is_pinned_address, "N8: {index} {name}: {why}");
                    assert!(why.contains("not for the name in the URL"), "{index} {name}: {why}");
                }
            }
        }
    }
    // An address in a dNSName is none.
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![rcgen::SanType::DnsName("192.0.2.1".try_into().unwrap())];
    let certificate = params.self_signed(&key).unwrap().der().clone();
    let server = Server { certificate, key };
    let trust = LoadedTrust {
        certificates: vec![server.certificate.clone()],
        provisioned: vec![webpki::anchor_from_trusted_cert(&server.certificate).unwrap().to_owned()],
        ..LoadedTrust::default()
    };
    assert!(meet_as("192.0.2.1", trust, None, &server, &[], &TLS13).is_err());
}

/// With a pin the address needs no name (N8). That is all that the pin makes up for.
#[test]
fn pin_makes_up_for_a_missing_address_and_nothing_else() {
    let cast = Cast::new();
    let (issuer, stranger) = (cast.issuer.der(), cast.stranger.der());
    let meet = |trust| meet_as("192.0.2.2", trust, None, &cast.server, &[issuer], &TLS13);
    assert!(meet(pins(&[&cast.server.certificate])).is_ok());
    assert!(meet(pins(&[stranger])).is_err(), "another pin");
    assert!(meet(and(ca_file(&[&cast.stranger]), pins(&[&cast.server.certificate]))).is_err(), "another CA");
    assert!(meet(and(ca_file(&[&cast.root]), pins(&[stranger]))).is_err(), "a pin that is not met");
    let mut params = Server::params();
    (params.not_before, params.not_after) =
        (rcgen::date_time_ymd(2000, 1, 1), rcgen::date_time_ymd(2001, 1, 1));
    let expired = Server::with(params, Some(&cast.issuer));
    let trust = pins(&[&expired.certificate]);
    assert!(meet_as("192.0.2.2", trust, None, &expired, &[issuer], &TLS13).is_err(), "expired");
}

/// Types of the extensions of a ClientHello in the first record of these bytes (RFC 8446 section
/// 4.1.2).
fn extensions(record: &[u8]) -> Vec<u16> {
    let two = |at: usize| usize::from(u16::from_be_bytes([record[at], record[at + 1]]));
    assert_eq!((record[0], record[5]), (22, 1), "a handshake record with a ClientHello");
    let mut at = 5 + 4 + 2 + 32; // record, message, version, random
    at += 1 + usize::from(record[at]); // session
    at += 2 + two(at); // cipher suites
    at += 1 + usize::from(record[at]); // compression
    let end = at + 2 + two(at);
    at += 2;
    let mut types = Vec::new();
    while at < end {
        types.push(two(at) as u16);
        at += 4 + two(at + 2);
    }
    types
}

/// A request in early data could be replayed, and a resumed session would keep the client
/// certificate that it was opened with.
#[test]
fn neither_early_data_nor_a_resumed_session_is_offered() {
    const PRE_SHARED_KEY: u16 = 41;
    const EARLY_DATA: u16 = 42;
    let cast = Cast::new();
    let observation = Arc::new(HandshakeObservation::default());
    let verifier = provisioned(Arc::new(ca_file(&[&cast.root])), observation.clone());
    let config = client(verifier, None, observation, false).unwrap();
    assert!(!config.enable_early_data);
    let config = Arc::new(config);
    let mut server_config =
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![cast.server.certificate.clone(), cast.issuer.der().clone()],
                cast.server.private(),
            )
            .unwrap();
    server_config.max_early_data_size = 1 << 14;
    server_config.send_tls13_tickets = 2;
    let server_config = Arc::new(server_config);
    for _ in 0..2 {
        let mut client = ClientConnection::new(config.clone(), "mis.example".try_into().unwrap()).unwrap();
        assert!(client.early_data().is_none());
        let mut server = ServerConnection::new(server_config.clone()).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        let offered = extensions(&hello);
        assert!(offered.contains(&51), "key_share: {offered:?}");
        assert!(!offered.contains(&EARLY_DATA) && !offered.contains(&PRE_SHARED_KEY), "{offered:?}");
        server.read_tls(&mut hello.as_slice()).unwrap();
        server.process_new_packets().unwrap();
        // To the end, with the tickets of the server.
        for _ in 0..4 {
            let (mut out, mut back) = (Vec::new(), Vec::new());
            while server.wants_write() {
                server.write_tls(&mut back).unwrap();
            }
            let mut back = back.as_slice();
            while !back.is_empty() {
                client.read_tls(&mut back).unwrap();
                client.process_new_packets().unwrap();
            }
            while client.wants_write() {
                client.write_tls(&mut out).unwrap();
            }
            let mut out = out.as_slice();
            while !out.is_empty() {
                server.read_tls(&mut out).unwrap();
                server.process_new_packets().unwrap();
            }
        }
        assert!(!client.is_handshaking() && client.tls13_tickets_received() > 0);
    }
}

#[test]
fn pinned_server_certificate_must_be_valid_itself() {
    let root = authority("root");
    let old = rcgen::date_time_ymd(2020, 1, 1);
    let ahead = rcgen::date_time_ymd(2200, 1, 1);
    let adjusted = |adjust: &dyn Fn(&mut CertificateParams)| {
        let mut params = Server::params();
        adjust(&mut params);
        params
    };
    let cases: [(&str, CertificateParams, Option<&str>); 6] = [
        ("plain", Server::params(), None),
        (
            "expired",
            adjusted(&|p| p.not_after = old),
            Some("its key is pinned, but its certificate has expired"),
        ),
        ("not yet", adjusted(&|p| p.not_before = ahead), Some("is not valid yet")),
        ("client", adjusted(&|p| p.extended_key_usages = vec![Purpose::ClientAuth]), Some("serverAuth")),
        ("both", adjusted(&|p| p.extended_key_usages = vec![Purpose::ClientAuth, Purpose::ServerAuth]), None),
        // As `openssl req -x509` makes them.
        ("marked as a CA", adjusted(&|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), None),
    ];
    for (what, params, want) in cases {
        for issuer in [None, Some(&root)] {
            let server = Server::with(params.clone(), issuer);
            match (meet(pins(&[&server.certificate]), &server, &[]), want) {
                (Ok(Provisioned), None) => {}
                (Err(why), Some(want)) if why.contains(want) => {}
                (got, _) => panic!("{what}: {got:?}"),
            }
        }
    }
}

#[test]
fn pinned_issuer_certificate_must_be_valid_itself() {
    let root = authority("root");
    let old = rcgen::date_time_ymd(2020, 1, 1);
    let ahead = rcgen::date_time_ymd(2200, 1, 1);
    let adjusted = |adjust: &dyn Fn(&mut CertificateParams)| {
        let mut params = ca_params("pinned");
        adjust(&mut params);
        params
    };
    for (what, params, want) in [
        ("plain", ca_params("pinned"), None),
        (
            "with the usage of a CA",
            adjusted(&|p| p.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign]),
            None,
        ),
        ("short", adjusted(&|p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0))), None),
        ("expired", adjusted(&|p| p.not_after = old), Some("has expired")),
        ("not yet", adjusted(&|p| p.not_before = ahead), Some("is not valid yet")),
        ("no CA by its word", adjusted(&|p| p.is_ca = IsCa::ExplicitNoCa), Some("is not a CA's")),
        ("no CA", adjusted(&|p| p.is_ca = IsCa::NoCa), Some("is not a CA's")),
        (
            "may not sign",
            adjusted(&|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature]),
            Some("keyCertSign"),
        ),
        ("for clients", adjusted(&|p| p.extended_key_usages = vec![Purpose::ClientAuth]), Some("serverAuth")),
    ] {
        let pinned = subordinate(params, &root);
        let server = Server::by(&pinned);
        match (meet(pins(&[pinned.der()]), &server, &[pinned.der()]), want) {
            (Ok(Provisioned), None) => {}
            (Err(why), Some(want)) if why.contains(want) => {}
            (got, _) => panic!("{what}: {got:?}"),
        }
    }
}

#[test]
fn intermediates_must_be_allowed_to_sign_certificates() {
    let root = authority("root");
    for (usages, fine) in [
        (vec![], true),
        (vec![KeyUsagePurpose::KeyCertSign], true),
        (vec![KeyUsagePurpose::DigitalSignature], false),
    ] {
        let mut params = ca_params("issuer");
        params.key_usages = usages.clone();
        let issuer = subordinate(params, &root);
        let server = Server::by(&issuer);
        for trust in [
            ca_file(&[&root]),
            system(&[&root]),
            and(ca_file(&[&root]), pins(&[issuer.der()])),
            pins(&[root.der()]),
        ] {
            let met = meet(trust, &server, &[issuer.der(), root.der()]);
            assert_eq!(met.is_ok(), fine, "{usages:?}: {met:?}");
        }
    }
}

#[test]
fn pinned_issuer_is_bound_by_its_own_constraints() {
    let mut params = ca_params("short");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let short = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let below = subordinate(ca_params("below"), &short);
    let server = Server::by(&below);
    let refused = meet(pins(&[short.der()]), &server, &[below.der(), short.der()]).unwrap_err();
    assert!(refused.contains("more intermediates") && refused.contains("pathLen"), "{refused}");

    let mut params = ca_params("of another name");
    params.name_constraints = Some(rcgen::NameConstraints {
        permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("other.example".into())],
        excluded_subtrees: Vec::new(),
    });
    let bounded = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let server = Server::by(&bounded);
    assert!(meet(pins(&[bounded.der()]), &server, &[bounded.der()]).is_err());
}

#[test]
fn intermediates_between_server_and_anchor_must_be_valid() {
    let root = authority("root");
    let mut params = ca_params("issuer");
    params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let expired = subordinate(params, &root);
    let server = Server::by(&expired);
    for trust in [ca_file(&[&root]), system(&[&root]), pins(&[root.der()])] {
        let refused = meet(trust, &server, &[expired.der(), root.der()]).unwrap_err();
        assert!(refused.contains("has expired"), "{refused}");
    }
    // And a server's certificate is no CA's, whatever its issuer.
    let posing = subordinate(Server::params(), &root);
    let server = Server::by(&posing);
    for trust in [ca_file(&[&root]), system(&[&root]), pins(&[root.der()]), pins(&[posing.der()])] {
        assert!(meet(trust, &server, &[posing.der(), root.der()]).is_err());
    }
}

/// A server that verifier for client certificates, or does not, and what the client makes of its
/// response.
fn handshake(
    identity: Option<CertifiedKey>,
    verifier: Option<Arc<dyn rustls::server::danger::ClientCertVerifier>>,
) -> (Result<(), rustls::Error>, Arc<HandshakeObservation>) {
    let root = authority("root");
    let server = Server::by(&root);
    let observation = Arc::new(HandshakeObservation::default());
    let of_servers = provisioned(Arc::new(ca_file(&[&root])), observation.clone());
    let config = Arc::new(client(of_servers, identity.map(Arc::new), observation.clone(), false).unwrap());
    let mut client = ClientConnection::new(config, "mis.example".try_into().unwrap()).unwrap();
    let builder = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap();
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let private = server.private();
    let config = builder.with_single_cert(vec![server.certificate], private).unwrap();
    let mut server = ServerConnection::new(Arc::new(config)).unwrap();
    for _ in 0..8 {
        let (mut out, mut back) = (Vec::new(), Vec::new());
        while client.wants_write() {
            client.write_tls(&mut out).unwrap();
        }
        let mut out = out.as_slice();
        while !out.is_empty() && server.read_tls(&mut out).is_ok() {
            let _ = server.process_new_packets(); // what it does not like it says in an alert
        }
        while server.wants_write() {
            server.write_tls(&mut back).unwrap();
        }
        let mut back = back.as_slice();
        while !back.is_empty() {
            client.read_tls(&mut back).unwrap();
            if let Err(e) = client.process_new_packets() {
                return (Err(e), observation);
            }
        }
    }
    (Ok(()), observation)
}

fn client_verifier(root: &Authority, optional: bool) -> Arc<dyn rustls::server::danger::ClientCertVerifier> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    if optional { builder.allow_unauthenticated().build().unwrap() } else { builder.build().unwrap() }
}

fn identity_by(issuer: &Authority, adjust: &dyn Fn(&mut CertificateParams)) -> CertifiedKey {
    let mut params = Server::params();
    adjust(&mut params);
    let leaf = Server::with(params, Some(issuer));
    let key = rustls::crypto::ring::sign::any_supported_type(&leaf.private()).unwrap();
    CertifiedKey::new(vec![leaf.certificate, issuer.der().clone()], key)
}

#[test]
fn client_certificate_requests_are_recorded() {
    let factory = authority("factory");
    let plain: &dyn Fn(&mut CertificateParams) = &|_| {};
    let identity = || Some(identity_by(&factory, plain));
    let (done, observation) = handshake(identity(), None);
    assert!(done.is_ok() && matches!(observation.request(), ClientAuthRequest::None));
    let (done, observation) = handshake(identity(), Some(client_verifier(&factory, false)));
    assert!(done.is_ok() && matches!(observation.request(), ClientAuthRequest::Sent(_)));
    let (done, observation) = handshake(None, Some(client_verifier(&factory, true)));
    assert!(done.is_ok() && matches!(observation.request(), ClientAuthRequest::NoCertificate));

    // No certificate was sent, so none was refused.
    let (done, observation) = handshake(None, Some(client_verifier(&factory, false)));
    let TlsReason::Required(why) = describe(&done.unwrap_err(), &observation) else {
        panic!("{:?}", observation.request())
    };
    assert!(why.contains("requires a client certificate here (certificate_required)"), "{why}");
}

#[test]
fn refused_client_certificate_is_reported_with_peculiarities() {
    let (factory, stranger) = (authority("factory"), authority("stranger"));
    let refused = |identity: CertifiedKey| {
        let (done, observation) = handshake(Some(identity), Some(client_verifier(&factory, false)));
        match describe(&done.unwrap_err(), &observation) {
            TlsReason::Client(why) => why,
            other => panic!("{other:?}"),
        }
    };
    let why = refused(identity_by(&stranger, &|_| {}));
    assert!(why.contains("does not know or trust the CA of the certificate (unknown_ca)"), "{why}");
    let dice = |params: &mut CertificateParams| {
        let mut extension = rcgen::CustomExtension::from_oid_content(&[2, 23, 133, 5, 4, 1], vec![0x30, 0]);
        extension.set_criticality(true);
        params.custom_extensions = vec![extension];
    };
    let why = refused(identity_by(&factory, &dice));
    assert!(why.contains("critical extensions that few servers process: TCG DICE TcbInfo"), "{why}");

    let mut params = ca_params("line 4");
    params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let line = subordinate(params, &factory);
    let why = refused(identity_by(&line, &|_| {}));
    assert!(why.contains("its intermediate \"CN=line 4\" expired at 2020-01-01"), "{why}");
}

#[test]
fn tls_failures_are_described_in_words() {
    use rustls::Error as E;
    let observation = HandshakeObservation::default();
    let shown = HandshakeObservation::default();
    shown.requested(ClientAuthRequest::Sent(Arc::new(identity_by(&authority("factory"), &|_| {}))));
    let description = |error: E, observation: &HandshakeObservation| {
        let (whose, why) = match describe(&error, observation) {
            TlsReason::Server(why) => ("server", why),
            TlsReason::Client(why) => ("client", why.into()),
            TlsReason::Other(why) => ("other", why),
            TlsReason::Required(why) => ("required", why.into()),
            TlsReason::Version(why) => ("version", why.into()),
        };
        crate::hint::assert_apart(&why);
        format!("{whose}: {}", why.with_hint())
    };
    for (error, observation, why) in [
        (
            E::AlertReceived(AlertDescription::HandshakeFailure),
            &observation,
            "other: it ended the TLS handshake (handshake_failure)",
        ),
        (E::AlertReceived(AlertDescription::HandshakeFailure), &observation, "P-521 key or group alone"),
        (
            E::AlertReceived(AlertDescription::HandshakeFailure),
            &shown,
            "client: it does not accept this certificate",
        ),
        (
            E::AlertReceived(AlertDescription::DecodeError),
            &shown,
            "client: its TLS library cannot read the certificate",
        ),
        (
            E::AlertReceived(AlertDescription::DecodeError),
            &observation,
            "other: it ended the TLS handshake (decode_error)",
        ),
        (
            E::AlertReceived(AlertDescription::AccessDenied),
            &observation,
            "although it had not requested a certificate from this device",
        ),
        (
            E::AlertReceived(AlertDescription::InternalError),
            &shown,
            "other: it ended the TLS handshake for a fault",
        ),
        (E::AlertReceived(AlertDescription::Unknown(200)), &observation, "(alert 200)"),
        (
            E::PeerIncompatible(PeerIncompatible::NoKxGroupsInCommon),
            &observation,
            "groups X25519, P-256 and P-384",
        ),
        (
            E::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13),
            &observation,
            "version: it does not speak TLS 1.3, and TLS 1.3 is required",
        ),
        (
            E::AlertReceived(AlertDescription::ProtocolVersion),
            &shown,
            "version: it does not speak TLS 1.3, and TLS 1.3 is required",
        ),
        (E::InvalidMessage(InvalidMessage::InvalidContentType), &observation, "does not speak TLS here"),
        (
            E::InvalidMessage(InvalidMessage::HandshakePayloadTooLarge),
            &observation,
            "server: it presented more than 64 KB",
        ),
        (
            E::InvalidCertificate(CertificateError::BadSignature),
            &observation,
            "server: it does not hold the key",
        ),
        (E::General("x".repeat(5000)), &observation, "other: "),
    ] {
        let words = description(error, observation);
        assert!(words.contains(why), "{words}");
        assert!(words.chars().count() < 700, "{words}");
        for technical in
            ["Context", "::", "https://", "PeerIncompatible", "InvalidMessage", "HandshakeFailure"]
        {
            assert!(!words.contains(technical), "{words}");
        }
    }
}
