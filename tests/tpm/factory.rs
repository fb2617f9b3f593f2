//! The device maker's key (rule K5): in a file, in a file that only the TPM can use, and at a
//! handle of the TPM.

use std::path::Path;

use miaf_agent::hint::Hint as _;
use miaf_agent::keys::factory_key::{FactoryKey, Source, open};
use miaf_agent::keys::tpm::{AuthValue, Unfit};
use miaf_agent::keys::{KeyFileError, KeyForm};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use x509_parser::prelude::{FromDer, SubjectPublicKeyInfo};
use zeroize::Zeroizing;

use super::*;

const HANDLE: u32 = 0x8102_0000;
const SIGNING: &str = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign";

impl Swtpm {
    fn openssl(&self, arguments: &str) {
        self.run("openssl", &arguments.split(' ').collect::<Vec<_>>());
    }

    /// As `openssl`, with the provider that has keys in the TPM, and without what it leaves there.
    fn openssl_tpm2(&self, arguments: &str) {
        self.openssl(&format!("{arguments} -provider tpm2 -provider default"));
        let _ = self.try_run("tpm2_flushcontext", &["-t"]);
    }

    /// Makes a key under the storage key and leaves its halves in `key.pub` and `key.priv`. It is
    /// guarded against guessing, as `noda` is not among the attributes.
    fn make(&self, algorithm: &str, attributes: &str, more: &[&str]) {
        let primary = ["-Q", "-C", "o", "-G", "ecc256:aes128cfb", "-a", STORAGE, "-c", "primary.ctx"];
        self.run("tpm2_createprimary", &primary);
        self.run("tpm2_flushcontext", &["-t"]);
        let key =
            ["-Q", "-C", "primary.ctx", "-G", algorithm, "-a", attributes, "-u", "key.pub", "-r", "key.priv"];
        self.run("tpm2_create", &[key.as_slice(), more].concat());
        self.run("tpm2_flushcontext", &["-t"]);
    }

    /// Makes a key and keeps it at `HANDLE`, in the place of another.
    fn make_at_handle(&self, algorithm: &str, attributes: &str, more: &[&str]) {
        self.make(algorithm, attributes, more);
        self.keep();
    }

    fn keep(&self) {
        let load = ["-Q", "-C", "primary.ctx", "-u", "key.pub", "-r", "key.priv", "-c", "key.ctx"];
        self.run("tpm2_load", &load);
        self.run("tpm2_flushcontext", &["-t"]);
        self.keep_context("key.ctx");
    }

    fn keep_context(&self, context: &str) {
        let handle = format!("{HANDLE:#010x}");
        let _ = self.try_run("tpm2_evictcontrol", &["-Q", "-C", "o", "-c", &handle]);
        self.run("tpm2_evictcontrol", &["-Q", "-C", "o", "-c", context, &handle]);
        self.run("tpm2_flushcontext", &["-t"]);
    }

    /// How many wrong passwords the TPM has counted.
    pub(super) fn lockout_counter(&self) -> u32 {
        let state = self.run("tpm2_getcap", &["properties-variable"]);
        let line = state.lines().find(|line| line.contains("LOCKOUT_COUNTER")).unwrap();
        u32::from_str_radix(line.rsplit_once("0x").unwrap().1.trim(), 16).unwrap()
    }
}

fn auth(password: &str) -> AuthValue {
    AuthValue::new(Zeroizing::new(password.as_bytes().to_vec())).unwrap()
}

fn open_file(tpm: &Swtpm, name: &str, auth: Option<&AuthValue>) -> Result<FactoryKey, KeyError> {
    open(Source::File(&tpm.file(name)), auth, &handle(tpm))
}

fn open_handle(tpm: &Swtpm, auth: Option<&AuthValue>) -> Result<FactoryKey, KeyError> {
    open(Source::TpmHandle(HANDLE), auth, &handle(tpm))
}

/// The key identifies a client in TLS 1.3, and rustls notices a certificate that belongs to
/// another.
fn assert_identifies(key: &FactoryKey, algorithm: &str) {
    assert_eq!(key.algorithm, algorithm);
    let spki = key.signing_key.public_key().unwrap();
    let (_, spki) = SubjectPublicKeyInfo::from_der(&spki).unwrap();
    let kind = match algorithm {
        "ecdsa-p256" => &rcgen::PKCS_ECDSA_P256_SHA256,
        "ecdsa-p384" => &rcgen::PKCS_ECDSA_P384_SHA384,
        "ed25519" => &rcgen::PKCS_ED25519,
        _ => &rcgen::PKCS_RSA_SHA256,
    };
    let pki = Pki::new();
    let leaf = pki.certify_key(&spki.subject_public_key.data, kind);
    let certified = CertifiedKey::new(vec![leaf.clone()], Arc::clone(&key.signing_key));
    certified.keys_match().expect("the certificate is recognised as the key's");
    let client = Arc::new(SingleCertAndKey::from(certified));
    let seen = pki.handshake(|config| config.with_client_cert_resolver(client)).unwrap();
    assert_eq!(seen, leaf);

    let other = CertifiedKey::new(vec![pki.root], Arc::clone(&key.signing_key));
    assert!(other.keys_match().is_err(), "the certificate of another key");
}

// At a handle of the TPM

#[test]
fn key_at_a_handle_identifies_the_device() {
    let mut tpm = Swtpm::start();
    use rustls::SignatureScheme::{
        ECDSA_NISTP256_SHA256, ECDSA_NISTP384_SHA384, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512,
    };
    let offered =
        [RSA_PSS_SHA512, RSA_PSS_SHA384, RSA_PSS_SHA256, ECDSA_NISTP384_SHA384, ECDSA_NISTP256_SHA256];
    for (made_as, algorithm, scheme) in [
        ("ecc256", "ecdsa-p256", ECDSA_NISTP256_SHA256),
        ("ecc256:ecdsa-sha256", "ecdsa-p256", ECDSA_NISTP256_SHA256),
        ("ecc384", "ecdsa-p384", ECDSA_NISTP384_SHA384),
        ("ecc384:ecdsa-sha384", "ecdsa-p384", ECDSA_NISTP384_SHA384),
        ("rsa2048", "rsa-2048", RSA_PSS_SHA256),
        ("rsa2048:rsapss-sha256:null", "rsa-2048", RSA_PSS_SHA256),
        ("rsa2048:rsapss-sha384:null", "rsa-2048", RSA_PSS_SHA384),
        ("rsa2048:rsapss-sha512:null", "rsa-2048", RSA_PSS_SHA512),
        ("rsa3072", "rsa-3072", RSA_PSS_SHA256),
    ] {
        tpm.make_at_handle(made_as, SIGNING, &[]);
        let key = open_handle(&tpm, None).unwrap_or_else(|error| panic!("{made_as}: {error}"));
        assert!(key.in_tpm);
        assert_eq!(key.signing_key.choose_scheme(&offered).unwrap().scheme(), scheme, "{made_as}");
        assert_identifies(&key, algorithm);
        assert_eq!(tpm.transient_handles(), 0);
    }
    assert_eq!(tpm.lockout_counter(), 0);

    // It is still where it was, and stays there over a power cut.
    let persistent = tpm.run("tpm2_getcap", &["handles-persistent"]);
    assert!(persistent.contains("0x81020000"), "{persistent}");
    let key = open_handle(&tpm, None).unwrap();
    tpm.power_cycle();
    assert_identifies(&key, "rsa-3072");
}

/// "TPM 2.0 Keys for Device Identity and Attestation" of the TCG: an IDevID key is a primary key of
/// the endorsement hierarchy, guarded against guessing, with a policy for its administrator; its
/// certificate is in an NV index.
#[test]
fn idevid_of_the_tcg_identifies_the_device() {
    let tpm = Swtpm::start();
    let pki = Pki::new();
    for (made_as, name, policy, algorithm, certified_as) in [
        ("ecc256:ecdsa-sha256", "sha256", 32, "ecdsa-p256", &rcgen::PKCS_ECDSA_P256_SHA256),
        ("ecc384:ecdsa-sha384", "sha384", 48, "ecdsa-p384", &rcgen::PKCS_ECDSA_P384_SHA384),
        ("rsa2048", "sha256", 32, "rsa-2048", &rcgen::PKCS_RSA_SHA256),
        ("rsa3072", "sha384", 48, "rsa-3072", &rcgen::PKCS_RSA_SHA256),
    ] {
        std::fs::write(tpm.file("policy"), vec![7; policy]).unwrap();
        let attributes = format!("{SIGNING}|adminwithpolicy");
        let primary = ["-Q", "-C", "e", "-G", made_as, "-g", name, "-a", &attributes, "-L", "policy"];
        tpm.run("tpm2_createprimary", &[primary.as_slice(), &["-c", "idevid.ctx"]].concat());
        tpm.run("tpm2_flushcontext", &["-t"]);
        tpm.keep_context("idevid.ctx");

        let key = open_handle(&tpm, None).unwrap_or_else(|error| panic!("{made_as}: {error}"));
        assert_eq!(key.algorithm, algorithm);
        let spki = key.signing_key.public_key().unwrap();
        let (_, spki) = SubjectPublicKeyInfo::from_der(&spki).unwrap();
        let leaf = pki.certify_key(&spki.subject_public_key.data, certified_as);
        tpm.write_nv("ownerread|ownerwrite|authread|ppread|no_da", &leaf, &[]);

        let chain = handle(&tpm).certificates_in_nv(0x01c9_0000).unwrap();
        let certified = CertifiedKey::new(chain, key.signing_key);
        certified.keys_match().unwrap();
        let client = Arc::new(SingleCertAndKey::from(certified));
        assert_eq!(pki.handshake(|config| config.with_client_cert_resolver(client)).unwrap(), leaf);
    }
    // The digest of the last one's name has 48 bytes, and so may its password.
    let error = open_handle(&tpm, Some(&auth(&"x".repeat(48)))).unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::AuthRefused { .. })), "{error:?}");
    let error = open_handle(&tpm, Some(&auth(&"x".repeat(49)))).unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::AuthTooLong { length: 49, limit: 48, .. })), "{error:?}");
    assert_eq!(tpm.transient_handles(), 0);
}

#[test]
fn key_at_a_handle_may_have_a_password() {
    let tpm = Swtpm::start();
    tpm.make_at_handle("ecc384", SIGNING, &["-p", "secret"]);
    let key = open_handle(&tpm, Some(&auth("secret"))).unwrap();
    assert_identifies(&key, "ecdsa-p384");
    assert!(!format!("{key:?}").contains("secret"), "{key:?}");
    assert_eq!(tpm.lockout_counter(), 0);

    let error = open_handle(&tpm, None).unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::AuthMissing { .. })), "{error:?}");
    assert!(error.hint().unwrap().contains("key_auth = \"credential:NAME\""), "{error}");
    assert_eq!(error.kind(), ErrorKind::NeedsOperator);

    // No key with a name made by SHA-256 has a password of more than 32 bytes: the TPM is not
    // asked.
    let counter = tpm.lockout_counter();
    let error = open_handle(&tpm, Some(&auth(&"x".repeat(33)))).unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::AuthTooLong { length: 33, limit: 32, .. })), "{error:?}");
    assert_eq!(tpm.lockout_counter(), counter);
}

#[test]
fn keys_that_cannot_do_tls_are_refused_with_the_reason() {
    let tpm = Swtpm::start();
    let unfit = |why: Unfit| {
        let error = open_handle(&tpm, None).unwrap_err();
        assert!(
            matches!(error, KeyError::Tpm(TpmError::Unfit { why: seen, .. }) if seen == why),
            "{why:?}: {error:?}"
        );
        assert!(error.to_string().contains("0x81020000"), "{error}");
        println!("{error}");
    };
    for (made_as, attributes, why) in [
        ("rsa2048:rsassa-sha256:null", SIGNING, Unfit::Pkcs1),
        ("rsa1024", SIGNING, Unfit::RsaSize),
        ("ecc521", SIGNING, Unfit::Curve),
        ("ecc384:ecdsa-sha256", SIGNING, Unfit::Hash),
        ("ecc256:ecdaa", SIGNING, Unfit::Scheme),
        ("ecc256:ecschnorr", SIGNING, Unfit::Scheme),
        ("hmac", SIGNING, Unfit::Kind),
        ("ecc256:ecdsa-sha256:null", &format!("{SIGNING}|restricted"), Unfit::Restricted),
        ("rsa2048", &SIGNING.replace("sign", "decrypt"), Unfit::NoSign),
    ] {
        tpm.make_at_handle(made_as, attributes, &[]);
        unfit(why);
    }
    tpm.run("tpm2_createprimary", &["-Q", "-C", "o", "-G", "ecc256:aes128cfb", "-c", "storage.ctx"]);
    tpm.run("tpm2_flushcontext", &["-t"]);
    tpm.keep_context("storage.ctx");
    unfit(Unfit::StorageKey);

    tpm.run("tpm2_startauthsession", &["-S", "session.ctx"]);
    tpm.run("tpm2_policypcr", &["-Q", "-S", "session.ctx", "-l", "sha256:0", "-L", "policy"]);
    tpm.run("tpm2_flushcontext", &["session.ctx"]);
    tpm.make_at_handle("ecc256", &SIGNING.replace("|userwithauth", ""), &["-L", "policy"]);
    unfit(Unfit::Policy);

    assert_eq!(tpm.transient_handles(), 0);
    assert_eq!(tpm.lockout_counter(), 0);
}

#[test]
fn empty_handle_is_named() {
    let tpm = Swtpm::start();
    for number in [HANDLE, 0x8000_0000, 0x4000_0001, 1] {
        let error = open(Source::TpmHandle(number), None, &handle(&tpm)).unwrap_err();
        assert!(
            matches!(error, KeyError::Tpm(TpmError::HandleMissing { handle, .. }) if handle == number),
            "{error:?}"
        );
        assert_eq!(error.kind(), ErrorKind::NeedsOperator);
    }
}

#[test]
fn owner_password_does_not_matter_at_a_handle() {
    let tpm = Swtpm::start();
    tpm.make_at_handle("ecc256", SIGNING, &[]);
    tpm.run("tpm2_changeauth", &["-c", "owner", "secret"]);
    assert_identifies(&open_handle(&tpm, None).unwrap(), "ecdsa-p256");
}

#[test]
fn factory_key_of_an_unreachable_tpm_says_so() {
    let mut tpm = Swtpm::start();
    tpm.make_at_handle("ecc256", SIGNING, &[]);
    tpm.stop();
    let error = open_handle(&tpm, None).unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::Unreachable { .. })), "{error:?}");
}

// Wrong passwords, and the lock-out that they lead to

#[test]
fn wrong_password_is_sent_once() {
    let tpm = Swtpm::start();
    tpm.make_at_handle("ecc256", SIGNING, &["-p", "secret"]);
    let client = handle(&tpm);
    for _ in 0..10 {
        let error = open(Source::TpmHandle(HANDLE), Some(&auth("guess")), &client.clone()).unwrap_err();
        assert!(matches!(error, KeyError::Tpm(TpmError::AuthRefused { code: 0x98e, .. })), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::NeedsOperator);
        assert!(!error.to_string().contains("guess"), "{error}");
    }
    assert_eq!(tpm.lockout_counter(), 1);

    // Nor is a missing one sent more than once, and another one has its chance.
    for _ in 0..10 {
        let error = open(Source::TpmHandle(HANDLE), None, &client).unwrap_err();
        assert!(matches!(error, KeyError::Tpm(TpmError::AuthMissing { .. })), "{error:?}");
    }
    assert_eq!(tpm.lockout_counter(), 2);
    open(Source::TpmHandle(HANDLE), Some(&auth("secret")), &client).unwrap();

    // Another key is another matter.
    tpm.run("tpm2_dictionarylockout", &["-c"]);
    tpm.make_at_handle("ecc256", SIGNING, &["-p", "guess"]);
    open(Source::TpmHandle(HANDLE), Some(&auth("guess")), &client).unwrap();
    assert_eq!(tpm.lockout_counter(), 0);
}

#[test]
fn concurrent_callers_send_a_wrong_password_once() {
    let tpm = Swtpm::start();
    tpm.make_at_handle("ecc256", SIGNING, &["-p", "secret"]);
    let (client, guess) = (handle(&tpm), auth("guess"));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| open(Source::TpmHandle(HANDLE), Some(&guess), &client).unwrap_err());
        }
    });
    assert_eq!(tpm.lockout_counter(), 1);
}

#[test]
fn wrong_password_of_a_key_exempt_from_lockout_is_named() {
    let tpm = Swtpm::start();
    tpm.make_at_handle("ecc256", &format!("{SIGNING}|noda"), &["-p", "secret"]);
    let error = open_handle(&tpm, Some(&auth("guess"))).unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::AuthRefused { code: 0x9a2, .. })), "{error:?}");
    assert_eq!(tpm.lockout_counter(), 0);
}

#[test]
fn lockout_is_named() {
    let tpm = Swtpm::start();
    tpm.make_at_handle("ecc256", SIGNING, &["-p", "secret"]);
    tpm.run("tpm2_dictionarylockout", &["-s", "-n", "1", "-t", "9999", "-l", "9999"]);
    let client = handle(&tpm);
    open(Source::TpmHandle(HANDLE), Some(&auth("guess")), &client).unwrap_err();
    let error = open(Source::TpmHandle(HANDLE), Some(&auth("secret")), &client).unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::Lockout { .. })), "{error:?}");

    // That was no refusal of the password.
    tpm.run("tpm2_dictionarylockout", &["-c"]);
    open(Source::TpmHandle(HANDLE), Some(&auth("secret")), &client).unwrap();
}

// In a file that only the TPM can use

#[test]
fn keys_created_by_openssl_identify_the_device() {
    let tpm = Swtpm::start();
    for (made_as, algorithm) in [
        ("EC -pkeyopt group:P-256", "ecdsa-p256"),
        ("EC -pkeyopt group:P-384", "ecdsa-p384"),
        ("RSA -pkeyopt bits:2048", "rsa-2048"),
        ("RSA -pkeyopt bits:3072", "rsa-3072"),
    ] {
        tpm.openssl_tpm2(&format!("genpkey -algorithm {made_as} -out key.pem"));
        let key = open_file(&tpm, "key.pem", None).unwrap_or_else(|error| panic!("{made_as}: {error}"));
        assert!(key.in_tpm);
        assert_identifies(&key, algorithm);
        assert_eq!(tpm.transient_handles(), 0);
    }
}

#[test]
fn key_of_openssl_with_a_password_needs_it() {
    let tpm = Swtpm::start();
    let made_as = "EC -pkeyopt group:P-256 -pkeyopt user-auth:secret";
    tpm.openssl_tpm2(&format!("genpkey -algorithm {made_as} -out key.pem"));
    assert_identifies(&open_file(&tpm, "key.pem", Some(&auth("secret"))).unwrap(), "ecdsa-p256");

    // The file says that there is one, so the TPM is not even asked.
    let error = open_file(&tpm, "key.pem", None).unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::AuthMissing { .. })), "{error:?}");
    assert!(error.to_string().contains("key.pem"), "{error}");
    assert_eq!(tpm.lockout_counter(), 0);

    let client = handle(&tpm);
    for _ in 0..3 {
        let file = tpm.file("key.pem");
        let error = open(Source::File(&file), Some(&auth("guess")), &client).unwrap_err();
        assert!(matches!(error, KeyError::Tpm(TpmError::AuthRefused { .. })), "{error:?}");
        assert!(error.to_string().contains("key.pem"), "{error}");
    }
    assert!(tpm.lockout_counter() <= 1);
    assert_eq!(tpm.transient_handles(), 0);
}

#[test]
fn keys_that_tpm2_tools_put_in_a_file_identify_the_device() {
    let tpm = Swtpm::start();
    let encode = ["-C", "0x40000001", "-u", "key.pub", "-r", "key.priv", "-o", "key.pem"];
    tpm.make("ecc256", SIGNING, &["-p", "secret"]);
    tpm.run("tpm2_encodeobject", &encode);
    assert_identifies(&open_file(&tpm, "key.pem", Some(&auth("secret"))).unwrap(), "ecdsa-p256");
    // With -p, which should tell of the password, the file says that there is none.
    tpm.run("tpm2_encodeobject", &[encode.as_slice(), &["-p"]].concat());
    assert_identifies(&open_file(&tpm, "key.pem", Some(&auth("secret"))).unwrap(), "ecdsa-p256");

    // Of a key without a password it is said that there is one: it is an empty one.
    tpm.make("rsa2048", SIGNING, &[]);
    tpm.run("tpm2_encodeobject", &encode);
    let error = open_file(&tpm, "key.pem", None).unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::AuthMissing { .. })), "{error:?}");
    assert_identifies(&open_file(&tpm, "key.pem", Some(&auth(""))).unwrap(), "rsa-2048");
    assert_eq!(tpm.lockout_counter(), 0);

    // The agent's own keys have none.
    let error =
        handle(&tpm).key_from_pem(&std::fs::read_to_string(tpm.file("key.pem")).unwrap()).unwrap_err();
    assert!(error.to_string().contains("emptyAuth"), "{error}");
}

#[test]
fn key_file_of_another_tpm_is_named() {
    let (tpm, other) = (Swtpm::start(), Swtpm::start());
    tpm.openssl_tpm2("genpkey -algorithm EC -pkeyopt group:P-384 -out key.pem");
    let error = open(Source::File(&tpm.file("key.pem")), None, &handle(&other)).unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::NotThisTpm { .. })), "{error:?}");
    assert_eq!(other.transient_handles(), 0);
}

#[test]
fn parent_with_a_password_is_named_and_tried_once() {
    let tpm = Swtpm::start();
    std::fs::write(tpm.file("key.pem"), made_by_tpm2_tools(&tpm, &[])).unwrap();
    let client = handle(&tpm);
    let file = tpm.file("key.pem");
    open(Source::File(&file), None, &client).unwrap();

    // The same parent, persistent with a password now.
    let parent = "0x81000010";
    tpm.run("tpm2_evictcontrol", &["-Q", "-C", "o", "-c", parent]);
    let primary = ["-Q", "-C", "o", "-G", "ecc256:aes128cfb", "-p", "parent", "-c", "primary.ctx"];
    tpm.run("tpm2_createprimary", &primary);
    tpm.run("tpm2_flushcontext", &["-t"]);
    tpm.run("tpm2_evictcontrol", &["-Q", "-C", "o", "-c", "primary.ctx", parent]);
    tpm.run("tpm2_flushcontext", &["-t"]);
    for _ in 0..5 {
        let error = open(Source::File(&file), None, &client).unwrap_err();
        assert!(matches!(error, KeyError::Tpm(TpmError::ParentPassword { .. })), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::NeedsOperator);
    }
    assert_eq!(tpm.lockout_counter(), 1);
}

#[test]
fn damaged_and_unfit_tpm_key_files_are_named() {
    let tpm = Swtpm::start();
    let encode = ["-C", "0x40000001", "-p", "-u", "key.pub", "-r", "key.priv", "-o", "key.pem"];
    tpm.make("ecc521", SIGNING, &[]);
    tpm.run("tpm2_encodeobject", &encode);
    let error = open_file(&tpm, "key.pem", None).unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::Unfit { why: Unfit::Curve, .. })), "{error:?}");
    assert!(error.to_string().contains("key.pem"), "{error}");

    tpm.make("rsa2048", SIGNING, &[]);
    tpm.run("tpm2_encodeobject", &encode);
    let good = std::fs::read_to_string(tpm.file("key.pem")).unwrap();
    let blobs = Tss2Key::from_pem(&good).unwrap();
    for (half, at) in [(0, 5), (0, 40), (0, 200), (1, 0), (1, 40), (1, 150)] {
        let mut key = blobs.clone();
        let bytes = if half == 0 { &mut key.public } else { &mut key.private };
        bytes[at] ^= 0x41;
        std::fs::write(tpm.file("bad.pem"), key.to_pem().unwrap()).unwrap();
        let error = open_file(&tpm, "bad.pem", None).expect_err("a damaged key does not sign");
        assert!(
            matches!(error.kind(), ErrorKind::BadInput | ErrorKind::KeyUnusable),
            "half {half}, {at}: {error:?}"
        );
    }
    std::fs::write(tpm.file("bad.pem"), &good[..good.len() / 2]).unwrap();
    let error = open_file(&tpm, "bad.pem", None).unwrap_err();
    assert!(matches!(error, KeyError::File(KeyFileError::Malformed { .. })), "{error:?}");
    assert!(error.to_string().contains("bad.pem"), "{error}");
    assert_eq!(tpm.transient_handles(), 0);
}

// In a file, as it is

#[test]
fn keys_in_files_identify_the_device() {
    let tpm = Swtpm::start();
    tpm.openssl("ecparam -name prime256v1 -genkey -out sec1.pem");
    tpm.openssl("pkcs8 -topk8 -nocrypt -in sec1.pem -out pkcs8.pem");
    tpm.openssl("ec -in sec1.pem -out bare.pem");
    tpm.openssl("ecparam -name secp384r1 -genkey -out p384.pem");
    tpm.openssl("genrsa -out rsa.pem 2048");
    tpm.openssl("genrsa -traditional -out pkcs1.pem 3072");
    tpm.openssl("genrsa -out rsa4096.pem 4096");
    tpm.openssl("genpkey -algorithm ed25519 -out ed25519.pem");
    assert!(std::fs::read_to_string(tpm.file("sec1.pem")).unwrap().starts_with("-----BEGIN EC PARAMETERS"));
    for (name, algorithm) in [
        ("sec1.pem", "ecdsa-p256"),
        ("pkcs8.pem", "ecdsa-p256"),
        ("bare.pem", "ecdsa-p256"),
        ("p384.pem", "ecdsa-p384"),
        ("rsa.pem", "rsa-2048"),
        ("pkcs1.pem", "rsa-3072"),
        ("rsa4096.pem", "rsa-4096"),
        ("ed25519.pem", "ed25519"),
    ] {
        let key = open_file(&tpm, name, None).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(!key.in_tpm);
        assert_identifies(&key, algorithm);

        // A password would be forgotten in silence.
        let error = open_file(&tpm, name, Some(&auth("secret"))).unwrap_err();
        assert!(matches!(error, KeyError::File(KeyFileError::AuthNotTaken { .. })), "{error:?}");
        assert!(error.to_string().contains(name), "{error}");
    }

    let key = open_file(&tpm, "sec1.pem", None).unwrap();
    tpm.openssl("pkey -in sec1.pem -pubout -outform DER -out public.der");
    let public = std::fs::read(tpm.file("public.der")).unwrap();
    assert_eq!(key.signing_key.public_key().unwrap().as_ref(), public.as_slice());
}

#[test]
fn key_files_in_all_common_forms_are_read() {
    let tpm = Swtpm::start();
    tpm.openssl("ecparam -name prime256v1 -genkey -out sec1.pem");
    tpm.openssl("req -x509 -new -key sec1.pem -subj /CN=factory -out certificate.pem");
    let read = |name: &str| std::fs::read_to_string(tpm.file(name)).unwrap();
    let (sec1, certificate) = (read("sec1.pem"), read("certificate.pem"));
    let tss2 = pem(&handle(&tpm).create_key().unwrap());
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
    for (content, in_tpm) in [
        ([b"Schl\xfcssel\n", sec1.as_bytes()].concat(), false),
        (format!("\u{feff}{sec1}").into_bytes(), false),
        (utf16(&format!("\u{feff}{}", sec1.replace('\n', "\r\n"))), false),
        (format!("{}{sec1}", certificate.trim_end()).into_bytes(), false),
        (sec1.replace('\n', "\n\t").into_bytes(), false),
        ([b"\xfcber dies: ", tss2.as_bytes()].concat(), true),
        (utf16(&tss2), true),
    ] {
        std::fs::write(tpm.file("key.pem"), content).unwrap();
        let key = open_file(&tpm, "key.pem", None).unwrap();
        assert_eq!((key.algorithm, key.in_tpm), ("ecdsa-p256", in_tpm));
    }

    tpm.openssl("pkcs8 -topk8 -in sec1.pem -out encrypted.pem -passout pass:secret");
    let encrypted = read("encrypted.pem");
    for (content, expected) in [
        (format!("{certificate}{encrypted}"), "an ENCRYPTED PRIVATE KEY"),
        (format!("{certificate}{}", sec1.replacen('M', "*", 1)), "line "),
        (encrypted.replace("ENCRYPTED", "OPENSSH"), "ssh-keygen -p"),
    ] {
        std::fs::write(tpm.file("key.pem"), content).unwrap();
        let error = open_file(&tpm, "key.pem", None).unwrap_err().with_hint().to_string();
        assert!(error.contains("key.pem") && error.contains(expected) && error.contains("line "), "{error}");
        assert!(!error.contains("AES"), "{error}");
    }
}

#[test]
fn key_file_readable_by_all_is_used_with_a_warning() {
    use std::os::unix::fs::PermissionsExt as _;

    let tpm = Swtpm::start();
    tpm.openssl("ecparam -name prime256v1 -genkey -out key.pem");
    let warning = |mode: u32| {
        std::fs::set_permissions(tpm.file("key.pem"), std::fs::Permissions::from_mode(mode)).unwrap();
        open_file(&tpm, "key.pem", None).unwrap().warning
    };
    std::fs::set_permissions(tpm.file(""), std::fs::Permissions::from_mode(0o755)).unwrap();
    let reported = warning(0o644).unwrap();
    assert!(
        reported.contains("0644") && reported.contains("chmod o= ") && reported.contains("key.pem"),
        "{reported}"
    );
    assert_eq!(warning(0o640), None);
}

#[test]
fn other_files_are_named_for_what_they_are() {
    let tpm = Swtpm::start();
    tpm.openssl("ecparam -name prime256v1 -genkey -out sec1.pem");
    tpm.openssl("pkcs8 -topk8 -in sec1.pem -out encrypted.pem -passout pass:secret");
    tpm.openssl("ec -in sec1.pem -out legacy.pem -aes128 -passout pass:secret");
    tpm.openssl("req -x509 -new -key sec1.pem -subj /CN=factory -out certificate.pem");
    tpm.openssl("pkey -in sec1.pem -pubout -out public.pem");
    tpm.openssl("ecparam -name secp521r1 -genkey -out p521.pem");
    tpm.openssl("genrsa -out small.pem 1024");
    tpm.openssl("genrsa -traditional -out large-rsa.pem 4608");
    let tss2 = pem(&handle(&tpm).create_key().unwrap());
    let sec1 = std::fs::read_to_string(tpm.file("sec1.pem")).unwrap();
    let write = |name: &str, text: &str| std::fs::write(tpm.file(name), text).unwrap();
    write("both.pem", &[sec1.as_str(), &sec1].concat());
    write("tss2-and-plain.pem", &[sec1.as_str(), &tss2].concat());
    write("cut.pem", &sec1[..sec1.len() - 40]);
    write("bad.pem", &sec1.replacen("\nM", "\n!", 1));
    write("empty.pem", "");
    write("large.pem", &" ".repeat(70_000));
    std::fs::write(tpm.file("binary.pem"), [0xff; 100]).unwrap();

    let form = |name: &str| match open_file(&tpm, name, None) {
        Err(KeyError::File(KeyFileError::Unsupported { form, origin })) => {
            assert!(origin.contains(name), "{origin}");
            form
        }
        other => panic!("{name}: {other:?}"),
    };
    assert_eq!(form("encrypted.pem"), KeyForm::Encrypted);
    assert_eq!(form("legacy.pem"), KeyForm::Encrypted);
    assert_eq!(form("certificate.pem"), KeyForm::Certificate);
    assert_eq!(form("public.pem"), KeyForm::PublicKey);
    assert_eq!(form("both.pem"), KeyForm::Several);
    assert_eq!(form("tss2-and-plain.pem"), KeyForm::Several);
    assert_eq!(form("small.pem"), KeyForm::RsaSize { bits: 1024, least: 2048 });
    assert_eq!(form("large-rsa.pem"), KeyForm::RsaSize { bits: 4608, least: 2048 });
    assert!(matches!(form("p521.pem"), KeyForm::Algorithm));

    for name in ["cut.pem", "bad.pem", "empty.pem", "binary.pem"] {
        let error = open_file(&tpm, name, None).unwrap_err();
        assert!(matches!(error, KeyError::File(KeyFileError::Malformed { .. })), "{name}: {error:?}");
        assert!(error.to_string().contains(name), "{error}");
    }
    for name in ["absent.pem", ".", "large.pem"] {
        let error = open(Source::File(&tpm.file(name)), None, &handle(&tpm)).unwrap_err();
        assert!(matches!(error, KeyError::File(KeyFileError::Unreadable { .. })), "{name}: {error:?}");
    }
    let error = open(Source::File(Path::new("/nonexistent/key.pem")), None, &handle(&tpm)).unwrap_err();
    assert!(matches!(error, KeyError::File(KeyFileError::Unreadable { .. })), "{error:?}");

    // The agent's own keys are the TPM's.
    let pem = std::fs::read_to_string(tpm.file("sec1.pem")).unwrap();
    let error = handle(&tpm).key_from_pem(&pem).unwrap_err();
    assert!(
        matches!(error, KeyError::File(KeyFileError::Unsupported { form: KeyForm::Plain, .. })),
        "{error:?}"
    );
}
