//! Keys in a TPM: every test has a software TPM of its own. Those of the agent are here, the device
//! maker's in `tpm/factory.rs`, its certificates in `tpm/nv.rs`, and the parents of keys in
//! `tpm/parent.rs`; in `tpm/installed.rs` keys in software, which go without.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "tpm/factory.rs"]
mod factory;
#[path = "tpm/installed.rs"]
mod installed;
#[path = "tpm/nv.rs"]
mod nv;
#[path = "tpm/parent.rs"]
mod parent;
#[path = "tpm/proxy.rs"]
mod proxy;
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use miaf_agent::keys::tpm::{Tcti, Tpm, TpmError, TpmKey, UnreachableCause};
use miaf_agent::keys::tss2::{Parent, Tss2Key};
use miaf_agent::keys::{ErrorKind, Key, KeyError, Protection, csr, rustls as tls};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use support::swtpm::Swtpm;

fn handle(tpm: &Swtpm) -> Tpm {
    Tpm::start(tpm.tcti().parse::<Tcti>().unwrap())
}

fn assert_signs(key: &dyn Key) {
    let signature = key.sign(b"a message").unwrap();
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.public_key().as_bytes())
        .verify(b"a message", &signature)
        .expect("the signature is good");
}

fn pem(key: &TpmKey) -> String {
    key.to_pem().unwrap().to_string()
}

/// The attributes of the storage key, as tpm2-tools spell them.
const STORAGE: &str = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt";

// Making a key (K1, K3)

#[test]
fn new_key_is_bound_to_the_tpm_and_signs() {
    let tpm = Swtpm::start();
    let key = handle(&tpm).create_key().unwrap();

    assert_eq!(key.protection(), Protection::Hardware);
    assert!(key.attributes().non_exportable());
    assert!(key.attributes().no_da);
    assert_eq!(key.public_key().algorithm_name(), "ecdsa-p256");
    assert_signs(&key);
    assert_eq!(tpm.transient_handles(), 0);
}

#[test]
fn key_attributes_are_reported_by_the_tpm_itself() {
    let tpm = Swtpm::start();
    let key = handle(&tpm).create_key().unwrap();
    let blobs = Tss2Key::from_pem(&pem(&key)).unwrap();
    std::fs::write(tpm.file("key.pub"), tpm2b(&blobs.public)).unwrap();
    std::fs::write(tpm.file("key.priv"), tpm2b(&blobs.private)).unwrap();

    // tpm2-tools derive the same storage key, or the load would fail.
    tpm.run(
        "tpm2_createprimary",
        &["-Q", "-C", "o", "-G", "ecc256:aes128cfb", "-a", STORAGE, "-c", "primary.ctx"],
    );
    tpm.run("tpm2_flushcontext", &["-t"]);
    tpm.run("tpm2_load", &["-Q", "-C", "primary.ctx", "-u", "key.pub", "-r", "key.priv", "-c", "key.ctx"]);
    tpm.run("tpm2_flushcontext", &["-t"]);
    let reported = tpm.run("tpm2_readpublic", &["-c", "key.ctx"]);

    let expected = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign";
    assert!(reported.contains(&format!("value: {expected}\n")), "{reported}");
    assert!(reported.contains("value: NIST p256"), "{reported}");
    assert!(reported.contains("value: ecdsa"), "{reported}");
    assert_eq!(key.attributes().to_string(), expected);
}

#[test]
fn keys_differ_from_each_other() {
    let tpm = Swtpm::start();
    let handle = handle(&tpm);
    let (one, other) = (handle.create_key().unwrap(), handle.create_key().unwrap());
    assert_ne!(one.public_key(), other.public_key());
    assert_signs(&one);
    assert_signs(&other);
}

#[test]
fn tpm_has_no_transient_objects_left() {
    let tpm = Swtpm::start();
    let handle = handle(&tpm);
    let begun = Instant::now();
    let keys: Vec<TpmKey> = (0..50).map(|_| handle.create_key().unwrap()).collect();
    let made = begun.elapsed();
    assert_eq!(tpm.transient_handles(), 0);

    let begun = Instant::now();
    for round in 0..200 {
        assert_signs(&keys[round % keys.len()]);
    }
    let signed = begun.elapsed();
    assert_eq!(tpm.transient_handles(), 0);
    println!("a creation takes {:?}, a signature {:?}", made / 50, signed / 200);
}

#[test]
fn tpm_is_shared_by_many_threads() {
    let tpm = Swtpm::start();
    let key = handle(&tpm).create_key().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| (0..5).for_each(|_| assert_signs(&key)));
        }
    });
    assert_eq!(tpm.transient_handles(), 0);
}

#[test]
fn tpm_describes_itself() {
    let tpm = Swtpm::start();
    let description = handle(&tpm).describe().unwrap();
    println!("{description}");
    assert!(description.starts_with("IBM SW"), "{description}");
    assert!(description.contains("firmware "), "{description}");
}

// Keeping a key

#[test]
fn key_is_loaded_from_its_pem() {
    let tpm = Swtpm::start();
    let key = handle(&tpm).create_key().unwrap();
    let again = handle(&tpm).key_from_pem(&pem(&key)).unwrap();

    assert_eq!(again.public_key(), key.public_key());
    assert_eq!(again.attributes(), key.attributes());
    assert_eq!(pem(&again), pem(&key));
    assert_signs(&again);

    std::fs::write(tpm.file("key.pem"), pem(&key)).unwrap();
    assert_signs(&handle(&tpm).key_from_pem(&std::fs::read_to_string(tpm.file("key.pem")).unwrap()).unwrap());
}

#[test]
fn key_survives_a_power_cycle() {
    let mut tpm = Swtpm::start();
    let old = handle(&tpm);
    let key = old.create_key().unwrap();
    let pem = pem(&key);
    assert_signs(&key);
    tpm.power_cycle();

    assert_signs(&key);
    assert_signs(&handle(&tpm).key_from_pem(&pem).unwrap());
    assert_signs(&old.create_key().unwrap());
    assert_eq!(tpm.transient_handles(), 0);
}

#[test]
fn pem_is_read_by_openssl() {
    let tpm = Swtpm::start();
    let key = handle(&tpm).create_key().unwrap();
    std::fs::write(tpm.file("key.pem"), pem(&key)).unwrap();

    let providers = ["-provider", "default", "-provider", "tpm2"];
    let arguments = ["pkey", "-in", "key.pem", "-pubout", "-outform", "DER", "-out", "public.der"];
    tpm.run("openssl", &[arguments.as_slice(), &providers].concat());
    assert_eq!(std::fs::read(tpm.file("public.der")).unwrap(), key.public_key().spki_der());
}

#[test]
fn key_made_by_openssl_signs() {
    let tpm = Swtpm::start();
    let providers = ["-provider", "tpm2", "-provider", "default"];
    let arguments = ["genpkey", "-algorithm", "EC", "-pkeyopt", "group:P-256", "-out", "key.pem"];
    tpm.run("openssl", &[arguments.as_slice(), &providers].concat());
    let _ = tpm.try_run("tpm2_flushcontext", &["-t"]);

    let key = handle(&tpm).key_from_pem(&std::fs::read_to_string(tpm.file("key.pem")).unwrap()).unwrap();
    assert_signs(&key);
    assert_eq!(tpm.transient_handles(), 0);
}

#[test]
fn key_under_a_persistent_parent_signs_while_that_exists() {
    let tpm = Swtpm::start();
    let key = handle(&tpm).key_from_pem(&made_by_tpm2_tools(&tpm, &[])).unwrap();
    assert_signs(&key);
    assert_signs(&key);
    assert_eq!(tpm.transient_handles(), 0);

    tpm.run("tpm2_evictcontrol", &["-Q", "-C", "o", "-c", "0x81000010"]);
    let error = key.sign(b"").unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::ParentMissing { handle: 0x8100_0010, .. })), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::NeedsOperator);
}

#[test]
fn damaged_pems_are_refused() {
    let tpm = Swtpm::start();
    let handle = handle(&tpm);
    let good = pem(&handle.create_key().unwrap());
    let blobs = Tss2Key::from_pem(&good).unwrap();
    let written = |public: &[u8], private: &[u8]| {
        Tss2Key { parent: blobs.parent, public: public.to_vec(), private: private.to_vec() }.to_pem().unwrap()
    };

    // Damage that shows on reading.
    let longer = [blobs.public.as_slice(), &[0]].concat();
    let mut off_the_curve = blobs.public.clone();
    *off_the_curve.last_mut().unwrap() ^= 1;
    for pem in [
        String::new(),
        good[..good.len() / 2].to_owned(),
        good.replace("TSS2 ", ""),
        good.replacen('A', "*", 1),
        written(&[1], &blobs.private),
        written(&longer, &blobs.private),
        written(&blobs.public[..blobs.public.len() - 1], &blobs.private),
        written(&off_the_curve, &blobs.private),
        written(&blobs.public, &[1; 5_000]),
    ] {
        let error = handle.key_from_pem(&pem).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadInput, "{error:?}");
    }

    // Damage anywhere: refused on reading or by the TPM, never used, never a panic.
    for half in [0, 1] {
        let length = [blobs.public.len(), blobs.private.len()][half];
        for at in 0..length {
            let mut halves = [blobs.public.clone(), blobs.private.clone()];
            halves[half][at] ^= 0x41;
            let outcome = handle.key_from_pem(&written(&halves[0], &halves[1])).and_then(|key| key.sign(b""));
            let error = outcome.expect_err("a damaged key does not sign");
            assert!(
                matches!(error.kind(), ErrorKind::BadInput | ErrorKind::KeyUnusable),
                "half {half}, {at}: {error:?}"
            );
        }
    }
    assert_eq!(tpm.transient_handles(), 0);
    assert_signs(&handle.key_from_pem(&good).unwrap());
}

// When the TPM will not

#[test]
fn key_is_refused_by_another_tpm() {
    let (tpm, other) = (Swtpm::start(), Swtpm::start());
    let pem = pem(&handle(&tpm).create_key().unwrap());
    let error = handle(&other).key_from_pem(&pem).unwrap().sign(b"").unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::NotThisTpm { code: 0x1df, .. })), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::KeyUnusable);
    assert_eq!(other.transient_handles(), 0);
}

#[test]
fn cleared_tpm_refuses_the_key_and_makes_others() {
    let tpm = Swtpm::start();
    let handle = handle(&tpm);
    let key = handle.create_key().unwrap();
    assert_signs(&key); // the TPM has saved it, for itself as it was
    tpm.run("tpm2_clear", &["-c", "p"]);
    let error = key.sign(b"").unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::NotThisTpm { .. })), "{error:?}");
    assert_signs(&handle.create_key().unwrap());
}

#[test]
fn stopped_tpm_is_unreachable_until_it_runs() {
    let mut tpm = Swtpm::start();
    let handle = handle(&tpm);
    tpm.stop();
    let error = handle.create_key().unwrap_err();
    assert!(
        matches!(error, KeyError::Tpm(TpmError::Unreachable { cause: UnreachableCause::Refused, .. })),
        "{error:?}"
    );
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains(&tpm.tcti()), "{error}");

    tpm.boot();
    let key = handle.create_key().unwrap();
    tpm.stop();
    let error = key.sign(b"").unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::Unreachable { .. })), "{error:?}");
    tpm.boot();
    assert_signs(&key);
}

#[test]
fn server_that_is_no_tpm_is_named() {
    let error = Tpm::start("device:/dev/null".parse().unwrap()).describe().unwrap_err();
    assert!(
        matches!(error, KeyError::Tpm(TpmError::Unreachable { .. }) | KeyError::Tpm(TpmError::Gone { .. })),
        "{error:?}"
    );
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    println!("{error}");
}

#[test]
fn missing_tpm_device_is_named() {
    let error = Tpm::start("device:/nonexistent/tpmrm0".parse().unwrap()).describe().unwrap_err();
    assert!(
        matches!(error, KeyError::Tpm(TpmError::Unreachable { cause: UnreachableCause::Missing, .. })),
        "{error:?}"
    );
}

#[test]
fn hung_tpm_does_not_hang_the_caller() {
    let tpm = Swtpm::start();
    let handle = handle(&tpm);
    let key = handle.create_key().unwrap();
    let hasty = handle.clone().with_deadline(Duration::from_millis(500)).key_from_pem(&pem(&key)).unwrap();

    tpm.signal("STOP");
    let begun = Instant::now();
    for _ in 0..3 {
        let begun = Instant::now();
        let error = hasty.sign(b"").unwrap_err();
        assert!(matches!(error, KeyError::Tpm(TpmError::NoAnswer { .. })), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(begun.elapsed() < Duration::from_secs(30));
    }

    // The queue has an end.
    let crowd = handle.clone().with_deadline(Duration::from_millis(1)).key_from_pem(&pem(&key)).unwrap();
    let turned_away =
        (0..100).filter(|_| matches!(crowd.sign(b""), Err(KeyError::Tpm(TpmError::Busy { .. })))).count();
    assert!((30..100).contains(&turned_away), "{turned_away} of 100");

    tpm.signal("CONT");
    // A request without a waiting caller is not executed, so the queue is soon free again.
    while let Err(error) = key.sign(b"") {
        assert!(matches!(error, KeyError::Tpm(TpmError::Busy { .. })), "{error:?}");
        assert!(begun.elapsed() < Duration::from_secs(120), "{error:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_signs(&key);
    assert_eq!(tpm.transient_handles(), 0);
}

#[test]
fn key_signs_during_lockout() {
    let tpm = Swtpm::start();
    let handle = handle(&tpm);
    let key = handle.create_key().unwrap();
    let not_exempt = handle.key_from_pem(&made_by_tpm2_tools(&tpm, &[])).unwrap();
    assert_signs(&not_exempt);
    tpm.run("tpm2_dictionarylockout", &["-s", "-n", "1", "-t", "9999", "-l", "9999"]);
    tpm.run("tpm2_nvdefine", &["-Q", "0x1500001", "-s", "8", "-a", "authread|authwrite", "-p", "right"]);
    for _ in 0..3 {
        let _ = tpm.try_run("tpm2_nvread", &["0x1500001", "-P", "wrong"]);
    }
    let state = tpm.run("tpm2_getcap", &["properties-variable"]);
    assert!(state.lines().any(|line| line.contains("inLockout") && line.contains('1')), "{state}");

    assert_signs(&key);
    assert_signs(&handle.create_key().unwrap());

    let error = not_exempt.sign(b"").unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::Lockout { .. })), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::NeedsOperator);
}

#[test]
fn key_with_a_password_is_named() {
    let tpm = Swtpm::start();
    let key = handle(&tpm).key_from_pem(&made_by_tpm2_tools(&tpm, &["-p", "secret"])).unwrap();
    let error = key.sign(b"").unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::KeyPassword { .. })), "{error:?}");
    assert_eq!(tpm.transient_handles(), 0);
}

#[test]
fn power_cuts_during_signing_do_no_harm() {
    let mut tpm = Swtpm::start();
    let handle = handle(&tpm);
    let key = handle.create_key().unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let (mut signed, mut failed) = (0, 0);
    std::thread::scope(|scope| {
        let signer = scope.spawn(|| {
            let (mut signed, mut failed) = (0, 0);
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                match key.sign(b"") {
                    Ok(_) => signed += 1,
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
                        failed += 1;
                    }
                }
            }
            (signed, failed)
        });
        for cut in 0..20 {
            std::thread::sleep(Duration::from_millis(20 + cut));
            tpm.power_cycle();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        (signed, failed) = signer.join().unwrap();
    });
    println!("20 power cuts: {signed} signatures, {failed} failures");
    assert!(signed > 0);
    assert_signs(&key);
    assert_signs(&handle.create_key().unwrap());
    assert_eq!(tpm.transient_handles(), 0);
}

#[test]
fn owner_password_is_named() {
    let tpm = Swtpm::start();
    let handle = handle(&tpm);
    let key = handle.create_key().unwrap();
    tpm.run("tpm2_changeauth", &["-c", "owner", "secret"]);
    for error in [handle.create_key().unwrap_err(), key.sign(b"").unwrap_err()] {
        assert!(matches!(error, KeyError::Tpm(TpmError::OwnerPassword { code: 0x9a2, .. })), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::NeedsOperator);
    }
    tpm.run("tpm2_changeauth", &["-c", "owner", "-p", "secret"]);
    assert_signs(&key);
}

#[test]
fn full_slots_are_named_and_nothing_is_added_to_them() {
    let tpm = Swtpm::start();
    let handle = handle(&tpm);
    let key = handle.create_key().unwrap();
    // Two of three slots: the storage key still fits, the key does not.
    for taken in [2, 3] {
        while tpm.transient_handles() < taken {
            tpm.run("tpm2_createprimary", &["-Q", "-C", "o", "-G", "ecc"]);
        }
        let error = key.sign(b"").unwrap_err();
        assert!(matches!(error, KeyError::Tpm(TpmError::SlotsFull { code: 0x902, .. })), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(tpm.transient_handles(), taken);
    }
    tpm.run("tpm2_flushcontext", &["-t"]);
    assert_signs(&key);
}

// At work: CSR, TLS

#[test]
fn csr_is_signed_by_the_key() {
    use x509_parser::prelude::{FromDer, X509CertificationRequest};

    let tpm = Swtpm::start();
    let key = handle(&tpm).create_key().unwrap();
    let der = csr::certification_request(&key, None).unwrap();
    let (rest, request) = X509CertificationRequest::from_der(&der).unwrap();
    assert!(rest.is_empty());
    request.verify_signature().expect("the request is signed by its own key");
    let info = &request.certification_request_info;
    assert_eq!(info.subject.to_string(), "CN=margo-device");
    assert_eq!(info.subject_pki.raw, key.public_key().spki_der());
    assert!(request.requested_extensions().is_none());

    std::fs::write(tpm.file("request.der"), &der).unwrap();
    tpm.run("openssl", &["req", "-inform", "DER", "-in", "request.der", "-verify", "-noout"]);
}

#[test]
fn csr_with_a_spiffe_id_has_that_uri_and_nothing_else() {
    use x509_parser::extensions::{GeneralName, ParsedExtension};
    use x509_parser::prelude::{FromDer, X509CertificationRequest};

    let tpm = Swtpm::start();
    let key = handle(&tpm).create_key().unwrap();
    let id = "spiffe://margo.org/margo/wfm/wfm-1/client/dev-1";
    let der = csr::certification_request(&key, Some(&miaf_spiffe::SpiffeId::parse(id).unwrap())).unwrap();
    let (_, request) = X509CertificationRequest::from_der(&der).unwrap();
    request.verify_signature().unwrap();
    assert_eq!(request.certification_request_info.subject.to_string(), "CN=margo-device");
    let extensions: Vec<_> = request.requested_extensions().unwrap().collect();
    let [ParsedExtension::SubjectAlternativeName(names)] = extensions[..] else { panic!("{extensions:?}") };
    assert_eq!(names.general_names, [GeneralName::URI(id)]);

    // openssl reads the PEM form.
    std::fs::write(tpm.file("request.pem"), csr::to_pem(&der).unwrap()).unwrap();
    tpm.run("openssl", &["req", "-in", "request.pem", "-verify", "-noout"]);
    assert!(csr::to_pem(&der).unwrap().starts_with("-----BEGIN CERTIFICATE REQUEST-----\n"));
}

#[test]
fn csr_of_est_is_read_by_openssl() {
    use miaf_agent::keys::csr::CsrContent;

    let tpm = Swtpm::start();
    let key = handle(&tpm).create_key().unwrap();
    let id = miaf_spiffe::SpiffeId::parse("spiffe://margo.org/margo/wfm/wfm-1/client/dev-1").unwrap();
    let pki = Pki::new();
    let contents = [
        (CsrContent::Empty, "Subject: \n"),
        (
            CsrContent::Named { common_name: Some("dev-1"), spiffe_id: Some(&id) },
            "URI:spiffe://margo.org/margo/wfm/wfm-1",
        ),
        (CsrContent::Renewal(&pki.certify(&key)), "Subject: CN"),
    ];
    for (content, says) in contents {
        let info = csr::request_info(&key, &content).unwrap();
        std::fs::write(tpm.file("request.der"), csr::sign_request(&key, &info).unwrap()).unwrap();
        let arguments = ["req", "-inform", "DER", "-in", "request.der", "-verify", "-noout", "-text"];
        let text = tpm.run("openssl", &arguments);
        assert!(text.contains(says), "{text}");
        assert!(!text.contains("challengePassword"), "{text}");
    }
}

#[test]
fn csr_that_cannot_be_signed_says_why() {
    let mut tpm = Swtpm::start();
    let key = handle(&tpm).create_key().unwrap();
    tpm.stop();
    let error = csr::certification_request(&key, None).unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::Unreachable { .. })), "{error:?}");
}

#[test]
fn tls_client_authentication_with_the_key() {
    use rustls::sign::{CertifiedKey, SingleCertAndKey};

    let tpm = Swtpm::start();
    let key: Arc<dyn Key> = Arc::new(handle(&tpm).create_key().unwrap());
    let pki = Pki::new();
    let leaf = pki.certify(key.as_ref());
    let certified = CertifiedKey::new(vec![leaf.clone()], tls::signing_key(Arc::clone(&key)));
    certified.keys_match().expect("the certificate is recognised as the key's");
    let client = Arc::new(SingleCertAndKey::from(certified));
    let seen = pki.handshake(|config| config.with_client_cert_resolver(client)).unwrap();
    assert_eq!(seen, leaf);

    // A certificate of another key is found out before it is used.
    let other = handle(&tpm).create_key().unwrap();
    let mismatched = CertifiedKey::new(vec![leaf], tls::signing_key(Arc::new(other)));
    assert!(mismatched.keys_match().is_err());
    assert_eq!(tpm.transient_handles(), 0);
}

/// A key as tpm2-tools make it, under a parent that is persistent at 0x81000010. It is not exempt
/// from lock-out.
fn made_by_tpm2_tools(tpm: &Swtpm, more: &[&str]) -> String {
    let parent = "0x81000010";
    tpm.run("tpm2_createprimary", &["-Q", "-C", "o", "-G", "ecc256:aes128cfb", "-c", "primary.ctx"]);
    tpm.run("tpm2_flushcontext", &["-t"]);
    tpm.run("tpm2_evictcontrol", &["-Q", "-C", "o", "-c", "primary.ctx", parent]);
    let arguments = ["-Q", "-C", parent, "-G", "ecc256:ecdsa-sha256", "-u", "key.pub", "-r", "key.priv"];
    tpm.run("tpm2_create", &[arguments.as_slice(), more].concat());
    tpm.run("tpm2_flushcontext", &["-t"]);
    let half = |name: &str| std::fs::read(tpm.file(name)).unwrap()[2..].to_vec();
    let parent = Parent::Persistent(0x8100_0010);
    Tss2Key { parent, public: half("key.pub"), private: half("key.priv") }.to_pem().unwrap()
}

fn tpm2b(value: &[u8]) -> Vec<u8> {
    [&u16::try_from(value.len()).unwrap().to_be_bytes(), value].concat()
}

/// A certificate authority, and a TLS server that asks clients for its certificates.
struct Pki {
    authority: rcgen::Issuer<'static, rcgen::KeyPair>,
    root: rustls::pki_types::CertificateDer<'static>,
}

type ClientBuilder = rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert>;

impl Pki {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { authority: rcgen::Issuer::new(params, key), root }
    }

    fn certify(&self, key: &dyn Key) -> rustls::pki_types::CertificateDer<'static> {
        self.certify_key(key.public_key().as_bytes(), &rcgen::PKCS_ECDSA_P256_SHA256)
    }

    /// A certificate for a point in SEC1 form, or an `RSAPublicKey`.
    fn certify_key(
        &self,
        key: &[u8],
        algorithm: &'static rcgen::SignatureAlgorithm,
    ) -> rustls::pki_types::CertificateDer<'static> {
        struct Subject<'a>(&'a [u8], &'static rcgen::SignatureAlgorithm);
        impl rcgen::PublicKeyData for Subject<'_> {
            fn der_bytes(&self) -> &[u8] {
                self.0
            }
            fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
                self.1
            }
        }
        let params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.signed_by(&Subject(key, algorithm), &self.authority).unwrap().der().clone()
    }

    /// A TLS 1.3 handshake in memory. Gives back the client certificate that the server has
    /// accepted.
    fn handshake(
        &self,
        client_auth: impl FnOnce(ClientBuilder) -> rustls::ClientConfig,
    ) -> Result<rustls::pki_types::CertificateDer<'static>, rustls::Error> {
        use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let roots = Arc::new(roots);

        let server_key = rcgen::KeyPair::generate().unwrap();
        let server_params = rcgen::CertificateParams::new(vec!["mis.example".into()]).unwrap();
        let server_leaf = server_params.signed_by(&server_key, &self.authority).unwrap().der().clone();
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
            Arc::clone(&roots),
            Arc::clone(&provider),
        )
        .build()
        .unwrap();
        let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![server_leaf],
                PrivateKeyDer::from(PrivatePkcs8KeyDer::from(server_key.serialize_der())),
            )
            .unwrap();
        let client = client_auth(
            rustls::ClientConfig::builder_with_provider(provider)
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .with_root_certificates(roots),
        );

        let mut server = rustls::ServerConnection::new(Arc::new(server)).unwrap();
        let name = "mis.example".try_into().unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(client), name).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            let mut wire = wire.as_slice();
            while !wire.is_empty() {
                server.read_tls(&mut wire).unwrap();
                server.process_new_packets()?;
            }
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            let mut wire = wire.as_slice();
            while !wire.is_empty() {
                client.read_tls(&mut wire).unwrap();
                client.process_new_packets()?;
            }
        }
        Ok(server.peer_certificates().unwrap()[0].clone().into_owned())
    }
}
