//! Installed keys: what openssl and the released MIS write is taken over, sealed, and signs. They
//! are software keys, which need no TPM and never wait for one.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Barrier};

use miaf_agent::keys::tpm::Tpm;
use miaf_agent::keys::{
    Key, KeyError, KeyFile, KeyFileError, KeyForm, ProviderKind, Providers, rustls as tls,
};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use zeroize::Zeroizing;

use super::{Pki, handle};
use crate::support::memory::mappings_with;
use crate::support::swtpm::Swtpm;

const ORIGIN: &str = "the key file x";

/// A directory in which openssl makes keys, and the providers.
struct Scene {
    directory: tempfile::TempDir,
    providers: Providers,
}

impl Scene {
    fn new() -> Self {
        Self::with(Tpm::start("device:/nonexistent/tpmrm0".parse().unwrap()))
    }

    fn with(tpm: Tpm) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let providers = Providers::new(tpm, &directory.path().join("private"), None);
        Self { directory, providers }
    }

    fn openssl(&self, arguments: &str) -> String {
        let mut command = Command::new("openssl");
        let done = command.args(arguments.split(' ')).current_dir(self.directory.path()).output().unwrap();
        assert!(done.status.success(), "{arguments}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    }

    fn import(&self, pem: &str) -> Result<Arc<dyn Key>, KeyError> {
        self.providers.import(&Zeroizing::new(pem.as_bytes().to_vec()), ORIGIN)
    }

    fn refused(&self, pem: &str) -> KeyForm {
        match self.import(pem) {
            Err(KeyError::File(KeyFileError::Unsupported { form, origin })) => {
                assert!(origin.starts_with(ORIGIN), "{origin}");
                form
            }
            other => panic!("{pem}: {other:?}"),
        }
    }

    /// The public half of a private key in PEM, as openssl computes it.
    fn public_of(&self, pem: &str) -> Vec<u8> {
        std::fs::write(self.directory.path().join("in.pem"), pem).unwrap();
        self.openssl("pkey -in in.pem -pubout -outform DER -out public.der");
        std::fs::read(self.directory.path().join("public.der")).unwrap()
    }
}

#[test]
fn installed_key_of_every_form_is_taken_over() {
    let scene = Scene::new();
    let pkcs8 = "genpkey -algorithm";
    let files = [
        (format!("{pkcs8} EC -pkeyopt ec_paramgen_curve:P-256"), "ecdsa-p256"),
        (format!("{pkcs8} EC -pkeyopt ec_paramgen_curve:P-384"), "ecdsa-p384"),
        (format!("{pkcs8} ED25519"), "ed25519"),
        (format!("{pkcs8} RSA -pkeyopt rsa_keygen_bits:3072"), "rsa-3072"),
        (format!("{pkcs8} RSA -pkeyopt rsa_keygen_bits:4096"), "rsa-4096"),
        ("ecparam -genkey -name prime256v1".into(), "ecdsa-p256"), // SEC1 after EC PARAMETERS
        ("ecparam -genkey -noout -name prime256v1".into(), "ecdsa-p256"), // SEC1, as mint writes it
        ("ecparam -genkey -name secp384r1".into(), "ecdsa-p384"),
        ("genrsa -traditional 3072".into(), "rsa-3072"), // PKCS#1
    ];
    for (command, algorithm) in files {
        let pem = scene.openssl(&command);
        let public = scene.public_of(&pem);
        let key = scene.import(&pem).unwrap();
        assert_eq!(key.public_key().algorithm_name(), algorithm, "{command}");
        assert_eq!(key.public_key().spki_der(), public, "{command}");
        assert_eq!(key.provider(), ProviderKind::Software);

        // Sealed, and opened again from its record, it is the same key.
        let record = key.to_pem().unwrap();
        miaf_agent::keys::check_record(&record).unwrap();
        let again = scene.providers.open(&record).unwrap();
        assert_eq!(again.public_key(), key.public_key(), "{command}");
        let KeyFile::Secret { pem: published, .. } = again.to_key_file().unwrap() else {
            panic!("a software key is a secret")
        };
        assert!(published.starts_with("-----BEGIN PRIVATE KEY-----\n"), "{command}");
        assert_eq!(scene.public_of(&published), public, "{command}");
        let secret = published.lines().nth(2).unwrap();
        assert!(!record.contains(secret), "{command}");

        // A digest is signed by P-256 only; the others say so.
        match (algorithm, again.sign_digest(&[7; 32])) {
            ("ecdsa-p256", signed) => drop(signed.unwrap()),
            (_, Err(KeyError::NotP256 { algorithm: named })) => assert_eq!(named, algorithm),
            (_, other) => panic!("{command}: {other:?}"),
        }
    }
}

#[test]
fn installed_key_identifies_a_tls_client() {
    let scene = Scene::new();
    let pki = Pki::new();
    let files = [
        ("EC -pkeyopt ec_paramgen_curve:P-256", &rcgen::PKCS_ECDSA_P256_SHA256),
        ("EC -pkeyopt ec_paramgen_curve:P-384", &rcgen::PKCS_ECDSA_P384_SHA384),
        ("ED25519", &rcgen::PKCS_ED25519),
        ("RSA -pkeyopt rsa_keygen_bits:3072", &rcgen::PKCS_RSA_SHA256),
    ];
    for (algorithm, of_certificate) in files {
        let key = scene.import(&scene.openssl(&format!("genpkey -algorithm {algorithm}"))).unwrap();
        let leaf = pki.certify_key(key.public_key().as_bytes(), of_certificate);
        let certified = CertifiedKey::new(vec![leaf.clone()], tls::signing_key(key));
        certified.keys_match().expect("the certificate is recognised as the key's");
        let client = Arc::new(SingleCertAndKey::from(certified));
        let seen = pki.handshake(|config| config.with_client_cert_resolver(client)).unwrap();
        assert_eq!(seen, leaf, "{algorithm}");
    }
}

#[test]
fn unfit_installed_key_is_refused_with_what_it_is() {
    let scene = Scene::new();
    let p256 = scene.openssl("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256");
    std::fs::write(scene.directory.path().join("key.pem"), &p256).unwrap();
    let encrypted = scene.openssl("pkcs8 -topk8 -in key.pem -passout pass:x");
    let legacy = scene.openssl("ec -in key.pem -aes128 -passout pass:x");
    let public = scene.openssl("pkey -in key.pem -pubout");
    let tss2 = include_str!("../../hw-tests/another-tpm.pem");
    for (pem, form) in [
        (encrypted, KeyForm::Encrypted),
        (legacy, KeyForm::Encrypted),
        (public, KeyForm::PublicKey),
        (p256.repeat(2), KeyForm::Several),
        (format!("{p256}{tss2}"), KeyForm::Several),
        (tss2.to_owned(), KeyForm::InTpm),
        (scene.openssl("genrsa -traditional 2048"), KeyForm::RsaSize { bits: 2048, least: 3072 }),
        (scene.openssl("genrsa 2048"), KeyForm::RsaSize { bits: 2048, least: 3072 }),
        (scene.openssl("ecparam -genkey -noout -name secp521r1"), KeyForm::InstalledAlgorithm),
        (
            scene.openssl("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-521"),
            KeyForm::InstalledAlgorithm,
        ),
        (scene.openssl("ecparam -genkey -noout -name secp256k1"), KeyForm::InstalledAlgorithm),
        (scene.openssl("genpkey -algorithm X25519"), KeyForm::InstalledAlgorithm),
        (scene.openssl("genpkey -algorithm ED448"), KeyForm::InstalledAlgorithm),
    ] {
        assert_eq!(scene.refused(&pem), form, "{pem}");
    }
    let cut = format!("{}\n-----END PRIVATE KEY-----\n", &p256[..p256.len() - 60]);
    for bad in [String::new(), "text".into(), cut, format!("{p256}{}", " ".repeat(40_000))] {
        let error = scene.import(&bad).unwrap_err();
        assert!(matches!(error, KeyError::File(_)), "{bad}: {error:?}");
        assert!(error.to_string().starts_with(ORIGIN), "{error}");
    }
    // Nothing was left behind, not even a key-encryption key.
    assert!(!scene.directory.path().join("private").exists());
}

#[test]
fn software_key_never_waits_for_a_tpm() {
    let tpm = Swtpm::start();
    let scene = Scene::with(handle(&tpm));
    let of_the_tpm = scene.providers.create(ProviderKind::Tpm).unwrap();
    tpm.signal("STOP");
    let begun = Arc::new(Barrier::new(4));
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let (key, begun) = (Arc::clone(&of_the_tpm), Arc::clone(&begun));
            std::thread::spawn(move || {
                begun.wait();
                key.sign(b"message").map(drop)
            })
        })
        .collect();
    begun.wait();

    let pem = scene.openssl("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256");
    for _ in 0..20 {
        let created = scene.providers.create(ProviderKind::Software).unwrap();
        let opened = scene.providers.open(&created.to_pem().unwrap()).unwrap();
        for key in [created, opened, scene.import(&pem).unwrap()] {
            key.sign(b"message").unwrap();
            key.check_available().unwrap();
            key.to_key_file().unwrap();
            scene.providers.retire(&*key).unwrap();
        }
    }
    assert!(waiting.iter().all(|signing| !signing.is_finished()), "the TPM hangs all the while");

    tpm.signal("CONT");
    for signing in waiting {
        let _ = signing.join().unwrap(); // made, or given up under load
    }
}

#[test]
fn no_provider_takes_the_place_of_another() {
    let scene = Scene::new();
    let key = scene.providers.create(ProviderKind::Software).unwrap();
    assert!(matches!(scene.providers.create(ProviderKind::Tpm), Err(KeyError::Tpm(_))));
    assert!(scene.providers.open(&key.to_pem().unwrap()).unwrap().sign(b"message").is_ok());
}

const CHILD: &str = "MIAF_TEST_INSTALLED_KEYS";
/// What takes more of the stack comes first, lest it overwrites what others leave there.
const FILES: [&str; 4] = ["rsa.pem", "P-256.pem", "ed25519.pem", "P-384.pem"];

#[test]
fn installed_key_does_not_stay_in_memory_after_use() {
    if let Some(directory) = std::env::var_os(CHILD) {
        return use_keys_and_wait(Path::new(&directory));
    }
    let scene = Scene::new();
    let mut pems = Vec::new();
    for (file, algorithm) in FILES.into_iter().zip([
        "RSA -pkeyopt rsa_keygen_bits:3072",
        "EC -pkeyopt ec_paramgen_curve:P-256",
        "ED25519",
        "EC -pkeyopt ec_paramgen_curve:P-384",
    ]) {
        let pem = scene.openssl(&format!("genpkey -algorithm {algorithm}"));
        std::fs::write(scene.directory.path().join(file), &pem).unwrap();
        pems.push(pem);
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "installed::installed_key_does_not_stay_in_memory_after_use", "--nocapture"])
        .env(CHILD, scene.directory.path())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let done = scene.directory.path().join("done");
    while !done.exists() {
        assert!(child.try_wait().unwrap().is_none(), "the child ended");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let path = scene.directory.path().to_str().unwrap().as_bytes();
    assert!(!mappings_with(child.id(), path).is_empty(), "what is in memory is found");
    for (file, pem) in FILES.iter().zip(&pems) {
        let content = pem.lines().nth(1).unwrap();
        let der = miaf_spiffe::pem::read(pem.as_bytes()).unwrap().blocks.remove(0).der;
        // The scalar of a key on a curve, or a part of the secret exponent of RSA.
        let secret = match *file {
            "P-256.pem" => &der[36..68],
            "P-384.pem" => &der[35..83],
            "ed25519.pem" => &der[16..48],
            _ => &der[600..800],
        };
        // ring has its numbers in the other order.
        let reversed: Vec<u8> = secret.iter().rev().copied().collect();
        let mut parts = vec![&content.as_bytes()[30..60], &secret[..16], &secret[secret.len() - 16..]];
        if *file != "rsa.pem" {
            parts.extend([&reversed[..16], &reversed[reversed.len() - 16..]]);
        }
        for part in parts {
            let found = mappings_with(child.id(), part);
            assert!(found.is_empty(), "{file}: {part:02x?} is in {found:#?}");
        }
    }
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

/// Installs the keys in a directory, uses them, and waits until standard input ends.
fn use_keys_and_wait(directory: &Path) {
    let scene = Scene::new();
    for file in FILES {
        let path = directory.join(file);
        let origin = path.display().to_string();
        let pem = miaf_agent::platform::credentials::Secret::File(path).read().unwrap();
        let key = scene.providers.import(&pem, &origin).unwrap();
        drop(pem);
        for key in [scene.providers.open(&key.to_pem().unwrap()).unwrap(), key] {
            key.sign(b"message").unwrap();
            key.to_key_file().map(drop).unwrap();
        }
    }
    std::fs::write(directory.join("done"), "").unwrap();
    std::io::stdin().read_line(&mut String::new()).unwrap();
}
