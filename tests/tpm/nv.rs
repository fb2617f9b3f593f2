//! The device maker's certificates in the TPM (rule K5).

use super::*;

/// Where device makers keep the certificate of the device's key.
const INDEX: u32 = 0x01c9_0000;

impl Swtpm {
    /// Defines the index anew and writes `content` to it.
    pub(super) fn write_nv(&self, attributes: &str, content: &[u8], more: &[&str]) {
        self.define_nv(attributes, content.len(), more);
        std::fs::write(self.file("content"), content).unwrap();
        self.run("tpm2_nvwrite", &["0x01c90000", "-C", "o", "-i", "content"]);
    }

    fn define_nv(&self, attributes: &str, size: usize, more: &[&str]) {
        let _ = self.try_run("tpm2_nvundefine", &["-C", "o", "0x01c90000"]);
        let size = size.to_string();
        let define = ["-Q", "0x01c90000", "-C", "o", "-s", &size, "-a", attributes];
        self.run("tpm2_nvdefine", &[define.as_slice(), more].concat());
    }
}

fn certificate(name: &str) -> Vec<u8> {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec![name.into()]).unwrap();
    params.self_signed(&key).unwrap().der().to_vec()
}

const OPEN: &str = "ownerread|ownerwrite|authread";

#[test]
fn nv_index_certificates_are_read() {
    let tpm = Swtpm::start();
    let handle = handle(&tpm);
    let chain = [certificate("device.example"), certificate("issuer.example"), certificate("root.example")];
    for attributes in ["ownerread|ownerwrite", "authread|ownerwrite", OPEN, "ownerread|ownerwrite|no_da"] {
        tpm.write_nv(attributes, &chain[0], &[]);
        let read = handle.certificates_in_nv(INDEX).unwrap_or_else(|error| panic!("{attributes}: {error}"));
        assert_eq!(read, [chain[0].clone().into()]);
    }
    for padding in [0, 0x00, 0xff] {
        let padding = vec![padding; 300];
        tpm.write_nv(OPEN, &[chain[0].as_slice(), &padding].concat(), &[]);
        assert_eq!(handle.certificates_in_nv(INDEX).unwrap(), [chain[0].clone().into()]);

        // Longer than what the TPM gives out at a time.
        let whole = [chain.concat(), padding].concat();
        assert!(whole.len() > 1024, "{}", whole.len());
        tpm.write_nv(OPEN, &whole, &[]);
        assert_eq!(handle.certificates_in_nv(INDEX).unwrap(), chain.clone().map(Into::into));
    }
    assert_eq!(tpm.lockout_counter(), 0);
}

#[test]
fn nv_index_readable_by_its_own_auth_needs_no_owner_password() {
    let tpm = Swtpm::start();
    let handle = handle(&tpm);
    let certificate = certificate("device.example");
    tpm.write_nv(OPEN, &certificate, &[]);
    tpm.run("tpm2_changeauth", &["-c", "owner", "secret"]);
    assert_eq!(handle.certificates_in_nv(INDEX).unwrap(), [certificate.clone().into()]);

    tpm.run("tpm2_changeauth", &["-c", "owner", "-p", "secret"]);
    tpm.write_nv("ownerread|ownerwrite", &certificate, &[]);
    tpm.run("tpm2_changeauth", &["-c", "owner", "secret"]);
    let error = handle.certificates_in_nv(INDEX).unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::NvLocked { .. })), "{error:?}");
    assert!(error.to_string().contains("owner password"), "{error}");
}

#[test]
fn nv_index_of_the_owner_is_read_with_its_password() {
    use miaf_agent::keys::tpm::ParentChoice;
    use miaf_agent::platform::credentials::Secret;

    let tpm = Swtpm::start();
    let certificate = certificate("device.example");
    tpm.write_nv("ownerread|ownerwrite", &certificate, &[]);
    tpm.run("tpm2_changeauth", &["-c", "owner", "secret"]);
    std::fs::write(tpm.file("owner.auth"), "secret\n").unwrap();
    let auth = Some(Secret::File(tpm.file("owner.auth")));
    let client = handle(&tpm).with_parent(ParentChoice::Auto, auth);
    assert_eq!(client.certificates_in_nv(INDEX).unwrap(), [certificate.into()]);
    std::fs::write(tpm.file("owner.auth"), "guess").unwrap();
    let error = client.certificates_in_nv(INDEX).unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::NvLocked { .. })), "{error:?}");
    assert_eq!(tpm.lockout_counter(), 0);
}

#[test]
fn nv_index_is_read_whatever_limit_the_tpm_reports() {
    use super::proxy::{Limit, Proxy};

    let tpm = Swtpm::start();
    let chain = [certificate("device.example"), certificate("issuer.example"), certificate("root.example")];
    tpm.write_nv(OPEN, &chain.concat(), &[]);
    let expected = chain.map(Into::into);
    for (reported, most) in [
        (Limit::Error(0x1c4), 512),
        (Limit::Error(0x1d5), 512),
        (Limit::Error(0x101), 256),
        (Limit::Is(2048), 512),
        (Limit::Is(2048), 1000),
        (Limit::Is(u32::MAX), 64),
        (Limit::Is(0), 128),
        (Limit::Is(100), 100),
    ] {
        for refusal in [Some(0x1c4), Some(0x1d5), Some(0x146), None] {
            let proxy = Proxy::start(&tpm, reported, most, refusal);
            let client = Tpm::start(proxy.tcti().parse::<Tcti>().unwrap());
            let read = client.certificates_in_nv(INDEX);
            assert_eq!(
                read.as_ref().ok(),
                Some(&expected.to_vec()),
                "{reported:?} {most} {refusal:?}: {read:?}"
            );
        }
    }
    assert_eq!(tpm.lockout_counter(), 0);

    // One that gives out nothing at all is not asked for ever.
    let proxy = Proxy::start(&tpm, Limit::Is(1024), 0, Some(0x1c4));
    let error = Tpm::start(proxy.tcti().parse::<Tcti>().unwrap()).certificates_in_nv(INDEX).unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::Refused { code: 0x1c4, .. })), "{error:?}");
    assert!(proxy.reads() <= 16, "{}", proxy.reads());
}

#[test]
fn missing_nv_index_is_named() {
    let tpm = Swtpm::start();
    for number in [INDEX, 0x0100_0000, 0x8102_0000, 0] {
        let error = handle(&tpm).certificates_in_nv(number).unwrap_err();
        assert!(
            matches!(error, KeyError::Tpm(TpmError::NvMissing { index, .. }) if index == number),
            "{error:?}"
        );
        assert_eq!(error.kind(), ErrorKind::NeedsOperator);
    }
}

#[test]
fn unwritten_nv_index_is_named() {
    let tpm = Swtpm::start();
    tpm.define_nv(OPEN, 100, &[]);
    let error = handle(&tpm).certificates_in_nv(INDEX).unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::NvUnwritten { index: INDEX, .. })), "{error:?}");
}

#[test]
fn unreadable_nv_index_says_why_and_is_not_retried() {
    let tpm = Swtpm::start();
    let handle = handle(&tpm);
    let content = certificate("device.example");
    tpm.write_nv("authread|ownerwrite", &content, &["-p", "secret"]);
    for _ in 0..10 {
        let error = handle.certificates_in_nv(INDEX).unwrap_err();
        assert!(matches!(error, KeyError::Tpm(TpmError::NvLocked { index: INDEX, .. })), "{error:?}");
        assert!(error.to_string().contains("it has a password"), "{error}");
        assert_eq!(error.kind(), ErrorKind::NeedsOperator);
    }
    assert_eq!(tpm.lockout_counter(), 1);

    // The password is of no account to the owner.
    tpm.write_nv(OPEN, &content, &["-p", "secret"]);
    assert_eq!(handle.certificates_in_nv(INDEX).unwrap(), [content.clone().into()]);
    assert_eq!(tpm.lockout_counter(), 1);

    tpm.write_nv("ppread|ownerwrite", &content, &[]);
    let error = handle.certificates_in_nv(INDEX).unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::NvLocked { .. })), "{error:?}");
    assert!(error.to_string().contains("platform"), "{error}");

    tpm.write_nv(&format!("{OPEN}|read_stclear"), &content, &[]);
    tpm.run("tpm2_nvreadlock", &["0x01c90000", "-C", "o"]);
    let error = handle.certificates_in_nv(INDEX).unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::NvLocked { .. })), "{error:?}");
    assert!(error.to_string().contains("until the TPM restarts"), "{error}");

    std::fs::write(tpm.file("policy"), [7; 32]).unwrap();
    tpm.write_nv("policyread|ownerwrite", &content, &["-L", "policy"]);
    let error = handle.certificates_in_nv(INDEX).unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::NvLocked { .. })), "{error:?}");
    assert!(error.to_string().contains("policy"), "{error}");
}

#[test]
fn nv_index_with_other_content_is_named() {
    let tpm = Swtpm::start();
    let handle = handle(&tpm);
    let good = certificate("device.example");
    for bad in [vec![0xff; 100], b"a serial number".to_vec(), good[..200].to_vec()] {
        tpm.write_nv(OPEN, &bad, &[]);
        let error = handle.certificates_in_nv(INDEX).unwrap_err();
        assert!(matches!(error, KeyError::Tpm(TpmError::NvContent { index: INDEX, .. })), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::BadInput);
    }
    tpm.define_nv("ownerread|ownerwrite|nt=counter", 8, &[]);
    let error = handle.certificates_in_nv(INDEX).unwrap_err();
    assert!(matches!(error, KeyError::Tpm(TpmError::NvContent { .. })), "{error:?}");
}
