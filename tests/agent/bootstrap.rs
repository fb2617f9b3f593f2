//! The bootstrap credential: what is wrong with it is named, and it can be replaced while the agent
//! runs (miaf-v0 K5, E9).

use std::fs;
use std::path::Path;
use std::time::Duration;

use development_mis::{Endpoint, FactorySpec, KeyKind};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::support::memory::mappings_with;
use crate::support::version_1::version_1;
use crate::world::{self, World};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Replaces a file atomically, as a provisioning tool should.
fn replace(with: &Path, at: &Path) {
    let beside = at.with_extension("beside");
    fs::copy(with, &beside).unwrap();
    fs::rename(beside, at).unwrap();
}

/// A device whose factory credential is of another kind.
fn world_with(spec: &FactorySpec) -> World {
    let world = World::new();
    let (certificate, key) = world.mis.new_factory_credential_as("other", spec).unwrap();
    replace(&certificate, &world.mis.factory_cert());
    replace(&key, &world.mis.factory_key());
    world
}

#[test]
fn factory_key_may_be_of_kinds_that_miaf_does_not_issue() {
    for (key, name) in
        [(KeyKind::P384, "ecdsa-p384"), (KeyKind::Rsa2048, "rsa-2048"), (KeyKind::Rsa3072, "rsa-3072")]
    {
        let mut world = world_with(&FactorySpec { key, ..FactorySpec::default() });
        world.device.start();
        let status = world.device.wait_for("active");
        assert_eq!(status["bootstrap"]["key"]["algorithm"], name);
        assert_eq!(status["key"]["algorithm"], "ecdsa-p256", "the SVID's own key is another matter");
    }
}

#[test]
fn factory_rsa_keys_have_2048_to_4096_bits() {
    for (bits, fine) in [("4096", true), ("1024", false)] {
        let mut world = World::new();
        let (key, spki) = (world.device.path("large.key"), world.device.path("large.spki"));
        let (key, spki) = (key.to_str().unwrap(), spki.to_str().unwrap());
        world.tpm.run("openssl", &["genrsa", "-out", key, bits]);
        world.tpm.run("openssl", &["pkey", "-in", key, "-pubout", "-outform", "der", "-out", spki]);
        let certificate = world.mis.certify_factory_key("large", &fs::read(spki).unwrap()).unwrap();
        configure(&world, &certificate, &format!("key = \"file:{key}\""));
        world.device.start();
        if fine {
            assert_eq!(world.device.wait_for("active")["bootstrap"]["key"]["algorithm"], "rsa-4096");
        } else {
            let said = world.device.wait_for("blocked")["lastError"]["detail"].to_string();
            assert!(said.contains("1024"), "{said}");
        }
    }
}

/// Whether such a certificate is good is the MIS's to say. This one's TLS library does not read
/// them, and what is odd about them is said with its refusal.
#[test]
fn odd_factory_certificate_is_sent_to_the_mis() {
    for (form, extensions, odd) in [
        ("uncompressed", None, "of X.509 version 1"),
        ("uncompressed", Some("2.23.133.5.4.1=critical,DER:30:00"), "few servers process: TCG DICE TcbInfo"),
        (
            "uncompressed",
            Some("certificatePolicies=critical,1.2.3.4"),
            "few servers process: certificatePolicies",
        ),
        ("compressed", Some("keyUsage=digitalSignature"), "compressed form, which TLS 1.3 does not have"),
    ] {
        let mut world = World::new();
        let file = |name: &str| world.device.path(name).to_str().unwrap().to_owned();
        let openssl = |words: String| world.tpm.run("openssl", &words.split(' ').collect::<Vec<_>>());
        let (ca, ca_key, own, own_key) =
            (file("maker.pem"), file("maker.key"), file("odd.pem"), file("odd.key"));
        let ec = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
        openssl(format!("req -x509 {ec} -keyout {ca_key} -out {ca} -subj /CN=maker -days 9"));
        openssl(format!("ecparam -name prime256v1 -genkey -noout -out {own_key}"));
        openssl(format!("ec -in {own_key} -conv_form {form} -out {}", file("form.key")));
        openssl(format!("req -new -key {} -out {} -subj /CN=device", file("form.key"), file("odd.csr")));
        let extensions = extensions.map(|lines| {
            fs::write(world.device.path("odd.ext"), lines).unwrap();
            format!(" -extfile {}", file("odd.ext"))
        });
        openssl(format!(
            "x509 -req -in {} -CA {ca} -CAkey {ca_key} -CAcreateserial -days 9 -out {own}{}",
            file("odd.csr"),
            extensions.as_deref().unwrap_or_default()
        ));
        if extensions.is_none() {
            let key = KeyPair::from_pem(&fs::read_to_string(&ca_key).unwrap()).unwrap();
            let der = CertificateDer::from_pem_file(&own).unwrap();
            fs::write(file("odd.der"), version_1(&der, &key)).unwrap();
            openssl(format!("x509 -inform DER -in {} -out {own}", file("odd.der")));
        }
        configure(&world, Path::new(&own), &format!("key = \"file:{own_key}\""));
        world.device.start();
        let status = world.device.wait_for_error(odd);
        assert_eq!(status["lastError"]["title"], "The MIS refused this device's certificate", "{status:#}");
        assert!(!world.mis.refused_handshakes().is_empty());
    }
}

#[test]
fn expired_intermediate_is_named() {
    let mut world = World::new();
    let file = |name: &str| world.device.path(name).to_str().unwrap().to_owned();
    let issuer = |name: &str, year| {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        params
    };
    let root = CertifiedIssuer::self_signed(issuer("root", 4000), KeyPair::generate().unwrap()).unwrap();
    let line =
        CertifiedIssuer::signed_by(issuer("line-4", 2020), KeyPair::generate().unwrap(), &root).unwrap();
    let (mut own, key) = (CertificateParams::new([]).unwrap(), KeyPair::generate().unwrap());
    own.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let own = own.signed_by(&key, &line).unwrap();
    fs::write(file("own.pem"), own.pem() + &line.pem()).unwrap();
    fs::write(file("own.key"), key.serialize_pem()).unwrap();
    let key = format!("key = \"file:{}\"", file("own.key"));
    configure(&world, Path::new(&file("own.pem")), &key);
    world.mis.policy(|policy| policy.refuse_in_handshake = true);
    world.device.start();
    let status = world.device.wait_for_error("its intermediate");
    assert!(
        status["lastError"]["detail"].as_str().unwrap().contains("\"CN=line-4\" expired at"),
        "{status:#}"
    );
    assert!(world.device.log().contains("an intermediate of the factory certificate has expired"));
}

#[test]
fn status_shows_the_fingerprint_of_the_factory_certificate() {
    let world = World::enrolled();
    let status = world.device.status();
    let device = world.mis.device(&world.mis.factory_cert()).unwrap().unwrap();
    assert_eq!(status["bootstrap"]["sha256"], device.esi);
}

#[test]
fn factory_certificate_out_of_validity_is_named_and_not_sent() {
    let expired = FactorySpec { lifetime: Duration::ZERO, ..FactorySpec::default() };
    let early = FactorySpec { begins_in: DAY, ..FactorySpec::default() };
    for (spec, why) in [(expired, "the factory certificate expired at"), (early, "is not valid before")] {
        let mut world = world_with(&spec);
        world.device.start();
        let status = world.device.wait_for("blocked");
        assert!(status["lastError"]["detail"].as_str().unwrap().contains(why), "{status:#}");
        assert!(status["bootstrap"]["notAfter"].is_string(), "{status:#}");
        let (_, requests) = world.after(Duration::from_secs(1));
        assert!(requests.iter().all(|entry| !world::is_at(entry, Endpoint::Enrollment)));
        assert!(world.mis.refused_handshakes().is_empty());
        // A good one is noticed without a restart.
        let (certificate, key) = world.mis.new_factory_credential("good").unwrap();
        replace(&certificate, &world.mis.factory_cert());
        replace(&key, &world.mis.factory_key());
        world.device.wait_for("active");
    }
}

#[test]
fn factory_certificate_expiry_is_announced_in_time() {
    let spec = FactorySpec { lifetime: 80 * DAY, ..FactorySpec::default() };
    let mut world = world_with(&spec);
    world.device.start();
    world.device.wait_for("active");
    assert!(world.device.log().contains("factory certificate expires soon"), "{}", world.device.log());
    let told = String::from_utf8(world.device.run(&["status"]).stdout).unwrap();
    assert!(told.contains("(in 2months"), "{told}");
}

#[test]
fn bad_replacement_keeps_the_last_good_credential() {
    let world = World::renewing();
    let (certificate, key) = (world.mis.factory_cert(), world.mis.factory_key());
    let before = world.device.wait_for_status("the credential", |status| status["bootstrap"].is_object());
    let (good, good_key) = (world.device.path("good.pem"), world.device.path("good.key"));
    fs::copy(&certificate, &good).unwrap();
    fs::copy(&key, &good_key).unwrap();

    let spec = FactorySpec { lifetime: Duration::ZERO, ..FactorySpec::default() };
    let (expired, expired_key) = world.mis.new_factory_credential_as("expired", &spec).unwrap();
    let (another, _) = world.mis.new_factory_credential("another").unwrap();
    let garbage = world.device.path("garbage.pem");
    fs::write(&garbage, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    for (bad, bad_key, why) in [
        (&garbage, &good_key, "a certificate in it is damaged"),
        (&another, &good_key, "does not belong to the factory certificate"),
        (&expired, &expired_key, "the factory certificate expired"),
    ] {
        replace(bad, &certificate);
        replace(bad_key, &key);
        world.device.signal("HUP");
        let status = world.device.wait_for_error(why);
        assert!(status["state"] == "active" || status["state"] == "renewing", "{status:#}");
        assert_eq!(status["bootstrap"]["sha256"], before["bootstrap"]["sha256"]);
    }
    assert!(world.device.log().contains("The one before it stays in use"));

    // It is needed while it is bad on disk, and does its work.
    world.mis.invalidate_svids().unwrap();
    assert_eq!(world.wait_for_requests(Endpoint::Enrollment, 2).last().unwrap().status, Some(200));

    replace(&good, &certificate);
    replace(&good_key, &key);
    world.device.signal("HUP");
    world
        .device
        .wait_until("it is good again", |device| device.log().contains("factory credential recovered"));
}

#[test]
fn new_factory_certificate_is_used_at_the_next_enrollment() {
    let world = World::renewing();
    let before = world.device.status();
    let (certificate, key) = world.mis.new_factory_credential("new").unwrap();
    let config = world::config(&world.mis, &world.tpm, world::SOON);
    let config = config
        .replace(world.mis.factory_cert().to_str().unwrap(), certificate.to_str().unwrap())
        .replace(world.mis.factory_key().to_str().unwrap(), key.to_str().unwrap());
    world.device.configure(&config);
    world.device.signal("HUP");
    let noticed = world.device.wait_for_status("the new certificate", |status| {
        status["bootstrap"]["sha256"].is_string()
            && status["bootstrap"]["sha256"] != before["bootstrap"]["sha256"]
    });
    assert!(world.device.log().contains("factory certificate replaced"));

    // The identity stays as long as it can be renewed.
    let renewed = world.device.wait_for_another_svid(&noticed["svid"]["serial"]);
    assert_eq!(renewed["spiffeId"], before["spiffeId"]);
    assert_eq!(world.seen(Endpoint::Enrollment).len(), 1);

    // Then the MIS knows the device as another one, and that is logged as an error (E9).
    world.mis.invalidate_svids().unwrap();
    let after = world.device.wait_for_status("another identity", |status| {
        status["spiffeId"].is_string() && status["spiffeId"] != before["spiffeId"]
    });
    assert_eq!(after["spiffeId"], world.mis.device(&certificate).unwrap().unwrap().ldi);
    assert!(world.device.log().contains("this identity has another SPIFFE ID than it had"));
}

#[test]
fn wrong_key_password_is_tried_once_and_a_new_one_at_once() {
    let mut world = World::new();
    let auth = device_with_guarded_key(&world, "correct horse", "wrong\n");
    world.device.start();
    world.device.wait_for_error("password");
    std::thread::sleep(Duration::from_secs(2)); // several attempts, were they made
    world.device.signal("HUP"); // nor does a reload try it again
    std::thread::sleep(Duration::from_secs(1));
    let counter = world.tpm.run("tpm2_getcap", &["properties-variable"]);
    assert!(counter.contains("TPM2_PT_LOCKOUT_COUNTER: 0x1\n"), "{counter}");

    fs::write(&auth, "correct horse\n").unwrap();
    let status = world.device.wait_for("active");
    assert_eq!(status["bootstrap"]["key"]["inTpm"], true);
}

#[test]
fn guarded_factory_key_is_used_for_enrollments_only() {
    let mut world = World::new();
    device_with_guarded_key(&world, "correct horse", "correct horse");
    world.device.start();
    world.device.wait_for("active");
    let count_after_power_cut = |world: &mut World| {
        world.device.kill();
        world.tpm.power_cycle();
        let properties = world.tpm.run("tpm2_getcap", &["properties-variable"]);
        let line = properties.lines().find(|line| line.contains("TPM2_PT_LOCKOUT_COUNTER")).unwrap();
        line.split("0x").nth(1).unwrap().to_owned()
    };
    assert_eq!(count_after_power_cut(&mut world), "1", "a power cut after a use counts as a guess");

    // The device has its identity: the agent checks the key after a start, and does not use it.
    world.device.start();
    let looked = |status: &serde_json::Value| status["bootstrap"]["key"]["inTpm"] == true;
    world.device.wait_for_status("a look at the key", looked);
    assert_eq!(count_after_power_cut(&mut world), "1");
}

#[test]
fn key_password_may_come_from_a_systemd_credential() {
    let mut world = World::new();
    let (certificate, handle) = guarded_key(&world, "correct horse");
    configure(
        &world,
        &certificate,
        &format!("key = \"tpm:{handle}\"\nkey_auth = \"credential:factory-key\""),
    );
    world.device.start();
    world.device.wait_for_error("factory-key");
    world.device.stop();
    let credentials = world.device.path("credentials");
    fs::create_dir(&credentials).unwrap();
    fs::write(credentials.join("factory-key"), "correct horse").unwrap();
    world.device.environment("CREDENTIALS_DIRECTORY", credentials.to_str().unwrap());
    world.device.start();
    world.device.wait_for("active");
    assert!(!world.device.log().contains("correct horse"));
}

#[test]
#[ignore = "needs root: the memory of the agent is closed to others"]
fn key_auth_does_not_stay_in_memory_after_use() {
    const PASSWORD: &str = "correct horse battery staple";
    for said in [PASSWORD, "another horse battery staple"] {
        let mut world = World::new();
        device_with_guarded_key(&world, PASSWORD, said);
        world.device.start();
        if said == PASSWORD {
            world.device.wait_for("active");
        } else {
            world.device.wait_for_error("refuses the password");
        }
        let pid = world.device.pid();
        assert!(!mappings_with(pid, b"factory.auth").is_empty(), "what is in memory is found");
        // Parts of it, too: what came later may lie over the rest.
        for part in [&said[..12], &said[said.len() - 16..]] {
            let found = mappings_with(pid, part.as_bytes());
            assert!(found.is_empty(), "{part:?} is in {found:#?}");
        }
    }
}

#[test]
fn missing_tpm_certificate_is_named_until_it_appears() {
    let mut world = World::new();
    let config = world::config(&world.mis, &world.tpm, "");
    let line = config.lines().find(|line| line.starts_with("cert_file")).unwrap();
    let lines = from_nv(&world, &world.mis.factory_cert());
    world.device.configure(&config.replace(line, &lines));
    world.device.start();
    world.device.wait_for_error(NV_INDEX);
    write_nv(&world, &world.mis.factory_cert());
    world.device.wait_for("active");
}

const NV_INDEX: &str = "0x01c90000";

/// The lines of a configuration for this certificate in an NV index, and its intermediates in a file.
pub(crate) fn from_nv(world: &World, certificate: &Path) -> String {
    let intermediates = world.device.path("intermediates.pem");
    let chain = fs::read_to_string(certificate).unwrap();
    fs::write(&intermediates, chain.split_once("-----END CERTIFICATE-----\n").unwrap().1).unwrap();
    format!("cert = \"tpm:{NV_INDEX}\"\nintermediates_file = \"{}\"", intermediates.display())
}

/// Writes this certificate into the NV index.
pub(crate) fn write_nv(world: &World, certificate: &Path) {
    let (tpm, der) = (&world.tpm, world.device.path("certificate.der"));
    let der = der.to_str().unwrap();
    tpm.run("openssl", &["x509", "-in", certificate.to_str().unwrap(), "-outform", "der", "-out", der]);
    let size = fs::metadata(der).unwrap().len() + 50; // an index with room to spare is filled up
    let attributes = "ownerread|ownerwrite|authread";
    tpm.run("tpm2_nvdefine", &["-Q", NV_INDEX, "-C", "o", "-s", &size.to_string(), "-a", attributes]);
    tpm.run("tpm2_nvwrite", &["-Q", NV_INDEX, "-C", "o", "-i", der]);
}

/// A device whose factory key has a password, and a file that says what it is: the file.
fn device_with_guarded_key(world: &World, password: &str, said: &str) -> std::path::PathBuf {
    let (certificate, handle) = guarded_key(world, password);
    let auth = world.device.path("factory.auth");
    fs::write(&auth, said).unwrap();
    let lines = format!("key = \"tpm:{handle}\"\nkey_auth = \"file:{}\"", auth.display());
    configure(world, &certificate, &lines);
    auth
}

/// A key with a password in the TPM, guarded against guessing, and its certificate.
pub(crate) fn guarded_key(world: &World, password: &str) -> (std::path::PathBuf, &'static str) {
    const HANDLE: &str = "0x81020000";
    let (tpm, file) = (&world.tpm, |name: &str| world.tpm.file(name).to_str().unwrap().to_owned());
    tpm.run("tpm2_createprimary", &["-Q", "-C", "o", "-G", "ecc", "-c", &file("parent")]);
    let attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign";
    let (public, private, context) = (file("public"), file("private"), file("context"));
    let made = ["-Q", "-C", &file("parent"), "-G", "ecc256:ecdsa-sha256", "-a", attributes, "-p", password];
    tpm.run("tpm2_create", &[&made[..], &["-u", &public, "-r", &private, "-c", &context]].concat());
    tpm.run("tpm2_flushcontext", &["-t"]);
    tpm.run("tpm2_evictcontrol", &["-Q", "-C", "o", "-c", &context, HANDLE]);
    tpm.run("tpm2_flushcontext", &["-t"]);
    tpm.run("tpm2_readpublic", &["-Q", "-c", HANDLE, "-f", "der", "-o", &file("spki")]);
    tpm.run("tpm2_flushcontext", &["-t"]);
    let spki = fs::read(file("spki")).unwrap();
    (world.mis.certify_factory_key("guarded", &spki).unwrap(), HANDLE)
}

/// Another certificate, and these lines in the place of the key's.
fn configure(world: &World, certificate: &Path, lines: &str) {
    let config = world::config(&world.mis, &world.tpm, "");
    let key = config.lines().find(|line| line.starts_with("key = \"file:")).unwrap();
    let usual = world.mis.factory_cert();
    world.device.configure(
        &config.replace(key, lines).replace(usual.to_str().unwrap(), certificate.to_str().unwrap()),
    );
}

/// What `journalctl` shows is the message, without the fields.
#[test]
fn log_says_why_the_credential_cannot_be_used() {
    let mut world = World::new();
    std::fs::write(world.mis.factory_cert(), "nothing").unwrap();
    world.device.start();
    world.device.wait_until("it is said", |device| device.log().contains("cannot be used"));
    let log = world.device.log();
    let line = log.lines().find(|line| line.contains("The factory credential cannot be used")).unwrap();
    assert!(line.contains("The factory credential cannot be used: the factory certificate"), "{line}");
}
