//! The key under which the agent's keys are made: the owner's primary, or a storage key that is
//! persistent in the TPM.

use miaf_agent::hint::Hint as _;
use miaf_agent::keys::KeyFile;
use miaf_agent::keys::tpm::ParentChoice;
use miaf_agent::platform::credentials::Secret;

use super::*;

const SRK: u32 = 0x8100_0001;
const RSA: &str = "rsa2048:aes128cfb";
const ECC: &str = "ecc256:aes128cfb";

impl Swtpm {
    /// Keeps a primary of a hierarchy in the TPM, in the place of another.
    fn keep_parent(&self, number: u32, hierarchy: &str, algorithm: &str, attributes: &str, more: &[&str]) {
        let number = format!("{number:#010x}");
        let _ = self.try_run("tpm2_evictcontrol", &["-Q", "-C", "o", "-c", &number]);
        let primary = ["-Q", "-C", hierarchy, "-G", algorithm, "-a", attributes, "-c", "parent.ctx"];
        self.run("tpm2_createprimary", &[primary.as_slice(), more].concat());
        self.run("tpm2_flushcontext", &["-t"]);
        self.run("tpm2_evictcontrol", &["-Q", "-C", "o", "-c", "parent.ctx", &number]);
        self.run("tpm2_flushcontext", &["-t"]);
    }

    fn set_owner_password(&self) {
        self.run("tpm2_changeauth", &["-c", "owner", "secret"]);
    }

    fn owner_password(&self, password: &str) -> Option<Secret> {
        std::fs::write(self.file("owner.auth"), password).unwrap();
        Some(Secret::File(self.file("owner.auth")))
    }
}

fn under(tpm: &Swtpm, parent: ParentChoice) -> Tpm {
    handle(tpm).with_parent(parent, None)
}

#[test]
fn srk_replaces_the_primary_if_the_owner_has_a_password() {
    for algorithm in [RSA, ECC] {
        let mut tpm = Swtpm::start();
        tpm.keep_parent(SRK, "o", algorithm, STORAGE, &[]);
        tpm.set_owner_password();
        let key = handle(&tpm).create_key().unwrap_or_else(|error| panic!("{algorithm}: {error}"));
        assert_eq!(key.parent(), Parent::Persistent(SRK));
        assert!(key.attributes().non_exportable());
        assert_signs(&key);

        // It comes back from its record, under the same parent, whatever is configured by then.
        let record = pem(&key);
        assert!(record.starts_with("Parent-Name: 000b"), "{record}");
        tpm.power_cycle();
        assert_signs(&under(&tpm, ParentChoice::Primary).key_from_pem(&record).unwrap());
        assert_eq!(pem(&handle(&tpm).key_from_pem(&record).unwrap()), record);
        assert_eq!(tpm.transient_handles(), 0);

        // Programs get the block alone, and OpenSSL reads it, and the record.
        let KeyFile::Tss2(bare) = key.to_key_file().unwrap() else { panic!("a key of the TPM") };
        assert!(bare.starts_with("-----BEGIN TSS2 PRIVATE KEY-----\n"), "{bare}");
        for text in [&bare, &record] {
            std::fs::write(tpm.file("key.pem"), text).unwrap();
            let providers = ["-provider", "default", "-provider", "tpm2"];
            let arguments = ["pkey", "-in", "key.pem", "-pubout", "-outform", "DER", "-out", "public.der"];
            tpm.run("openssl", &[arguments.as_slice(), &providers].concat());
            assert_eq!(std::fs::read(tpm.file("public.der")).unwrap(), key.public_key().spki_der());
        }
        let error = under(&tpm, ParentChoice::Primary).create_key().unwrap_err();
        assert!(matches!(error, KeyError::Tpm(TpmError::OwnerPassword { code: 0x9a2, .. })), "{error:?}");
    }
}

#[test]
fn configured_parent_is_used_though_the_primary_could_be() {
    let tpm = Swtpm::start();
    tpm.keep_parent(0x8100_0010, "o", RSA, STORAGE, &[]);
    let parent = ParentChoice::Persistent(0x8100_0010);
    let key = under(&tpm, parent).create_key().unwrap();
    assert_eq!(key.parent(), Parent::Persistent(0x8100_0010));
    assert_signs(&key);
    // And auto means the primary where there is no reason against it.
    tpm.keep_parent(SRK, "o", RSA, STORAGE, &[]);
    assert_eq!(handle(&tpm).create_key().unwrap().parent(), Parent::OwnerPrimary);

    let error = under(&tpm, ParentChoice::Persistent(0x8100_0011)).create_key().unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::ParentMissing { handle: 0x8100_0011, .. })), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::NeedsOperator);
    assert_eq!(tpm.transient_handles(), 0);
}

#[test]
fn owner_password_is_used_and_a_wrong_one_locks_nothing() {
    let mut tpm = Swtpm::start();
    tpm.set_owner_password();
    let with = |tpm: &Swtpm, password: &str| {
        handle(tpm).with_parent(ParentChoice::Auto, tpm.owner_password(password))
    };
    let client = with(&tpm, "secret\n");
    let key = client.create_key().unwrap();
    assert_eq!(key.parent(), Parent::OwnerPrimary);
    assert_signs(&key);
    tpm.power_cycle();
    let again = client.key_from_pem(&pem(&key)).unwrap();
    assert_signs(&again);

    // The connection does not keep it for the next caller.
    let error = client.clone().with_parent(ParentChoice::Auto, None).create_key().unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::OwnerPassword { code: 0x9a2, .. })), "{error:?}");

    for _ in 0..40 {
        let error = with(&tpm, "guess").create_key().unwrap_err();
        assert!(matches!(error, KeyError::Tpm(TpmError::OwnerAuthRefused { code: 0x9a2, .. })), "{error:?}");
        assert!(!error.to_string().contains("guess"), "{error}");
        assert!(error.to_string().contains("0x81000001 be used: there is none"), "{error}");
    }
    assert_eq!(tpm.lockout_counter(), 0);
    assert_signs(&with(&tpm, "secret").key_from_pem(&pem(&key)).unwrap());

    let error = with(&tpm, &"x".repeat(65)).create_key().unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::OwnerAuthUnreadable { .. })), "{error:?}");
    let missing = Some(Secret::File(tpm.file("missing")));
    let error = handle(&tpm).with_parent(ParentChoice::Auto, missing.clone()).create_key().unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::OwnerAuthUnreadable { .. })), "{error:?}");
    assert!(error.to_string().contains("missing"), "{error}");
    assert_eq!(error.kind(), ErrorKind::NeedsOperator);

    // With the SRK there, nothing of this is in the way.
    tpm.run("tpm2_changeauth", &["-c", "owner", "-p", "secret"]);
    tpm.keep_parent(SRK, "o", RSA, STORAGE, &[]);
    tpm.set_owner_password();
    assert_signs(&with(&tpm, "guess").create_key().unwrap());
    assert_signs(&handle(&tpm).with_parent(ParentChoice::Auto, missing).create_key().unwrap());
    assert_eq!(tpm.transient_handles(), 0);
}

#[test]
fn disabled_owner_hierarchy_is_named_and_another_parent_works() {
    let tpm = Swtpm::start();
    let key = handle(&tpm).create_key().unwrap();
    let platform = ["-Q", "-C", "p", "-G", ECC, "-a", STORAGE, "-c", "parent.ctx"];
    tpm.run("tpm2_createprimary", &platform);
    tpm.run("tpm2_flushcontext", &["-t"]);
    tpm.run("tpm2_evictcontrol", &["-Q", "-C", "p", "-c", "parent.ctx", "0x81800010"]);
    tpm.run("tpm2_flushcontext", &["-t"]);
    tpm.keep_parent(SRK, "o", ECC, STORAGE, &[]);
    tpm.run("tpm2_hierarchycontrol", &["-C", "p", "shEnable", "clear"]);
    let srk = under(&tpm, ParentChoice::Persistent(SRK)).create_key().unwrap_err();
    assert!(matches!(srk, KeyError::Tpm(TpmError::HierarchyDisabled { code: 0x18b, .. })), "{srk:?}");
    for error in [handle(&tpm).create_key().unwrap_err(), key.sign(b"").unwrap_err()] {
        assert!(matches!(error, KeyError::Tpm(TpmError::HierarchyDisabled { code: 0x185, .. })), "{error:?}");
        assert!(error.hint().unwrap().contains("firmware set-up"), "{error}");
        assert_eq!(error.kind(), ErrorKind::NeedsOperator);
    }
    let under_another = under(&tpm, ParentChoice::Persistent(0x8180_0010)).create_key().unwrap();
    assert_signs(&under_another);
    tpm.run("tpm2_hierarchycontrol", &["-C", "p", "shEnable", "set"]);
    assert_signs(&key);
    assert_signs(&under_another);
    assert_eq!(tpm.transient_handles(), 0);
}

#[test]
fn key_of_the_primary_works_when_that_is_stored_as_srk() {
    let tpm = Swtpm::start();
    let key = handle(&tpm).create_key().unwrap();
    // Just what the agent derives.
    tpm.keep_parent(SRK, "o", ECC, STORAGE, &[]);
    tpm.set_owner_password();
    let again = handle(&tpm).key_from_pem(&pem(&key)).unwrap();
    assert_signs(&again);
    assert_signs(&key);

    // Under another one it does not load, and the owner's password is what is to be said of it.
    tpm.run("tpm2_changeauth", &["-c", "owner", "-p", "secret"]);
    tpm.keep_parent(SRK, "o", RSA, STORAGE, &[]);
    tpm.set_owner_password();
    let error = handle(&tpm).key_from_pem(&pem(&key)).unwrap().sign(b"").unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::OwnerPassword { .. })), "{error:?}");
    assert!(error.to_string().contains("the key was not created under it"), "{error}");
    assert_eq!(error.kind(), ErrorKind::NeedsOperator);
}

#[test]
fn unfit_parents_are_refused_with_the_reason() {
    let tpm = Swtpm::start();
    std::fs::write(tpm.file("policy"), [7; 32]).unwrap();
    for (algorithm, attributes, more, why) in [
        (ECC, STORAGE.replace("|noda", ""), &[] as &[&str], "noda is clear"),
        ("ecc256", STORAGE.replace("restricted|decrypt", "sign"), &[], "not a storage key"),
        (ECC, STORAGE.replace("userwithauth|", ""), &["-L", "policy"], "bound to a policy"),
        (ECC, STORAGE.to_owned(), &["-p", "parent"], "password"),
    ] {
        tpm.keep_parent(SRK, "o", algorithm, &attributes, more);
        let error = under(&tpm, ParentChoice::Persistent(SRK)).create_key().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NeedsOperator, "{error:?}");
        assert!(error.to_string().contains(why), "{why}: {error}");

        tpm.set_owner_password();
        let error = handle(&tpm).create_key().unwrap_err();
        assert!(matches!(error, KeyError::Tpm(TpmError::OwnerPassword { .. })), "{error:?}");
        assert!(error.to_string().contains(why), "{why}: {error}");
        tpm.run("tpm2_changeauth", &["-c", "owner", "-p", "secret"]);
    }
    assert_eq!(tpm.lockout_counter(), 0);
    assert_eq!(tpm.transient_handles(), 0);
}

#[test]
fn replaced_parent_key_is_noticed() {
    let tpm = Swtpm::start();
    tpm.keep_parent(SRK, "o", RSA, STORAGE, &[]);
    let key = under(&tpm, ParentChoice::Persistent(SRK)).create_key().unwrap();
    tpm.keep_parent(SRK, "o", ECC, STORAGE, &[]);
    for key in [&key, &handle(&tpm).key_from_pem(&pem(&key)).unwrap()] {
        let error = key.sign(b"").unwrap_err();
        assert!(matches!(error, KeyError::Tpm(TpmError::ParentReplaced { handle: SRK, .. })), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::NeedsOperator);
        assert!(error.hint().unwrap().contains("retry --new-key"), "{error}");
    }
    tpm.keep_parent(SRK, "o", RSA, STORAGE, &[]);
    assert_signs(&key);
    tpm.run("tpm2_evictcontrol", &["-Q", "-C", "o", "-c", "0x81000001"]);
    let error = key.sign(b"").unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::ParentMissing { handle: SRK, .. })), "{error:?}");
    // Cleared, the TPM derives another key from the same template.
    tpm.run("tpm2_clear", &["-c", "p"]);
    tpm.keep_parent(SRK, "o", RSA, STORAGE, &[]);
    let error = key.sign(b"").unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::ParentReplaced { .. })), "{error:?}");
}

#[test]
fn parent_guarded_against_guessing_is_tried_once() {
    let tpm = Swtpm::start();
    let client = handle(&tpm);
    let key = client.key_from_pem(&made_by_tpm2_tools(&tpm, &[])).unwrap();
    assert_signs(&key);
    let guarded = STORAGE.replace("|noda", "");
    tpm.keep_parent(0x8100_0010, "o", ECC, &guarded, &["-p", "parent"]);
    for _ in 0..5 {
        let error = key.sign(b"").unwrap_err();
        assert!(matches!(error, KeyError::Tpm(TpmError::ParentPassword { .. })), "{error:?}");
    }
    assert_eq!(tpm.lockout_counter(), 1);
}
