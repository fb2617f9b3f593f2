//! The certificate form: enrollment, recovery without an operator, and what is said of a certificate
//! that is not accepted (X27, X29, X40, X69).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use development_mis::{Authorization, ClientCertificates, Endpoint, FactorySpec, Fault, SvidFault};

use super::{CLIENT, Line, NAME, assert_repeated, statuses};
use crate::bootstrap;
use crate::world;

/// These files in the certificate form.
fn by_certificate(certificate: &Path, key: &Path) -> String {
    format!("cert_file = \"{}\"\nkey = \"file:{}\"\n", certificate.display(), key.display())
}

/// A copy of a credential where the device expects it.
fn provision(line: &Line, (certificate, key): &(std::path::PathBuf, std::path::PathBuf)) {
    for (from, to) in [(key, "line.key"), (certificate, "line.pem")] {
        let aside = line.world.device.path("aside");
        fs::copy(from, &aside).unwrap();
        fs::rename(aside, line.world.device.path(to)).unwrap();
    }
}

const PROVISIONED: &str = "cert_file = \"{dir}/line.pem\"\nkey = \"file:{dir}/line.key\"\n";

#[test]
fn certificate_enrolls_and_recovers_from_a_refused_renewal() {
    let mut line = Line::new();
    let (certificate, key) = line.world.mis.new_factory_credential("line").unwrap();
    line.world.mis.est().authorize(&certificate, CLIENT).unwrap();
    line.start(&by_certificate(&certificate, &key), world::SOON);
    line.wait_for("an SVID", |client| client["svid"].is_object());
    let [first] = &line.at(Endpoint::EstEnroll)[..] else { panic!("one enrollment") };
    let sha256 = first.client_leaf_sha256.clone().unwrap();
    let record = format!("state/private/identities/{NAME}/identity.json");
    let record = fs::read_to_string(line.world.device.path(&record)).unwrap();
    assert!(record.contains(&sha256), "the enrollment is recorded with its certificate: {record}");
    // Revoked: the SVID is refused at its renewal, and the certificate leads on by itself.
    line.world.mis.est().revoke(CLIENT).unwrap();
    let is_new = |line: &Line| line.at(Endpoint::EstEnroll).len() == 2;
    line.world.device.wait_until("another enrollment", |_| is_new(&line));
    let renewals = line.at(Endpoint::EstReenroll).len();
    line.world.wait_for_requests(Endpoint::EstReenroll, renewals + 1);
    let record = line.world.mis.est().record();
    let by_certificate =
        record.iter().filter(|one| matches!(one.authorization, Authorization::Certificate(_)));
    assert_eq!(by_certificate.count(), 2, "{record:?}");
    assert!(line.world.mis.est().alerts().is_empty(), "the same key all along");
    line.check_wire();
}

#[test]
fn certificate_recovers_after_the_svid_has_expired() {
    let mut line = Line::new();
    let (certificate, key) = line.world.mis.new_factory_credential("line").unwrap();
    line.world.mis.est().authorize(&certificate, CLIENT).unwrap();
    let short = Fault::Svid(SvidFault::Lifetime(Duration::from_secs(15)));
    line.world.mis.fault(Endpoint::EstEnroll, short);
    line.start(&by_certificate(&certificate, &key), "");
    let first = line.wait_for("an SVID", |client| client["svid"].is_object());
    line.world.mis.est().suspend(CLIENT).unwrap();
    line.wait_for_state("expired");
    line.restart();
    line.wait_for_state("expired");
    line.world.mis.est().reinstate(CLIENT).unwrap();
    line.wait_for_another_svid(&first);
    line.wait_for_state("active");
    line.check_wire();
}

#[test]
fn refused_certificate_is_named_and_replaced_at_once() {
    let mut line = Line::new();
    let stranger = line.world.mis.new_factory_credential("stranger").unwrap();
    let good = line.world.mis.new_factory_credential("line").unwrap();
    line.world.mis.est().authorize(&good.0, CLIENT).unwrap();
    provision(&line, &stranger);
    // Such a refusal is not looked at again for an hour.
    let config = line.config(PROVISIONED, "").replace("cap = \"500ms\"", "cap = \"1h\"");
    line.world.device.configure(&config);
    line.world.device.start();
    let error = line.wait_for_error("401");
    assert!(error["hint"].to_string().contains("cert_file under [identity.est]"), "{error:#}");
    provision(&line, &good);
    line.wait_for_state("active");
    let attempts = line.at(Endpoint::EstEnroll);
    assert_eq!(statuses(&attempts), [Some(401), Some(200)]);
    assert_repeated(&attempts);
    assert_ne!(attempts[0].client_leaf_sha256, attempts[1].client_leaf_sha256);
    line.check_wire();
}

#[test]
fn unusable_certificate_is_named_and_not_sent() {
    let mut line = Line::new();
    let expired = FactorySpec { lifetime: Duration::ZERO, ..FactorySpec::default() };
    let expired = line.world.mis.new_factory_credential_as("expired", &expired).unwrap();
    let good = line.world.mis.new_factory_credential("line").unwrap();
    line.world.mis.est().authorize(&good.0, CLIENT).unwrap();
    line.start(PROVISIONED, "");
    for (certificate, key, says) in [
        (None, None, "line.pem"),
        (Some(&expired.0), Some(&expired.1), "expired"),
        (Some(&good.0), Some(&expired.1), "does not belong"),
    ] {
        if let (Some(certificate), Some(key)) = (certificate, key) {
            provision(&line, &(certificate.clone(), key.clone()));
        }
        let error = line.wait_for_error(says);
        assert!(error["hint"].is_string(), "{error:#}");
        line.wait_for_state("blocked");
    }
    assert!(line.at(Endpoint::EstEnroll).is_empty());
    provision(&line, &good);
    line.wait_for_state("active");
    line.check_wire();
}

#[test]
fn certificate_with_its_key_in_the_tpm_enrolls() {
    let mut line = Line::new();
    let (certificate, handle) = bootstrap::guarded_key(&line.world, "correct horse");
    line.world.mis.est().authorize(&certificate, CLIENT).unwrap();
    fs::write(line.world.device.path("auth"), "correct horse").unwrap();
    let lines = format!(
        "cert_file = \"{}\"\nkey = \"tpm:{handle}\"\nkey_auth = \"file:{{dir}}/auth\"\n",
        certificate.display()
    );
    line.start(&lines, "");
    line.wait_for_state("active");
    assert_eq!(line.at(Endpoint::EstEnroll).len(), 1);
    assert!(!line.world.device.log().contains("correct horse"));
    line.check_wire();
}

/// Certificate and key are where a manufacturer puts them; the second enrollment has no operator.
#[test]
fn certificate_in_nv_enrolls_and_recovers_after_expiry() {
    let mut line = Line::new();
    let (certificate, handle) = bootstrap::guarded_key(&line.world, "correct horse");
    line.world.mis.est().authorize(&certificate, CLIENT).unwrap();
    bootstrap::write_nv(&line.world, &certificate);
    fs::write(line.world.device.path("auth"), "correct horse").unwrap();
    let from_nv = bootstrap::from_nv(&line.world, &certificate);
    let short = Fault::Svid(SvidFault::Lifetime(Duration::from_secs(15)));
    line.world.mis.fault(Endpoint::EstEnroll, short);
    line.start(&format!("{from_nv}\nkey = \"tpm:{handle}\"\nkey_auth = \"file:{{dir}}/auth\"\n"), "");
    let first = line.wait_for("an SVID", |client| client["svid"].is_object());
    line.world.mis.est().suspend(CLIENT).unwrap();
    line.wait_for_state("expired");
    line.world.kill();
    line.world.tpm.power_cycle();
    line.world.device.start();
    line.wait_for_state("expired");
    line.world.mis.est().reinstate(CLIENT).unwrap();
    line.wait_for_another_svid(&first);
    let leaves: BTreeSet<_> =
        line.at(Endpoint::EstEnroll).into_iter().map(|entry| entry.client_leaf_sha256).collect();
    assert_eq!(leaves.len(), 1, "one certificate authorized both: {leaves:?}");
    line.check_wire();
}

#[test]
fn nothing_is_sent_where_no_certificate_is_requested() {
    let mut line = Line::new();
    let (certificate, key) = line.world.mis.new_factory_credential("line").unwrap();
    line.world.mis.est().authorize(&certificate, CLIENT).unwrap();
    line.world.mis.policy(|p| p.client_certificates = ClientCertificates::NotRequested);
    line.start(&by_certificate(&certificate, &key), world::SOON);
    let error = line.wait_for_error("does not take the certificate form");
    assert!(error["hint"].is_string(), "{error:#}");
    assert!(line.at(Endpoint::EstEnroll).is_empty(), "X29");
    line.world.mis.policy(|p| p.client_certificates = ClientCertificates::Requested);
    let held = line.wait_for("an SVID", |client| client["svid"].is_object());
    // The same for a renewal: what is held stays.
    line.world.mis.policy(|p| p.client_certificates = ClientCertificates::NotRequested);
    line.wait_for_error("takes no SVID for a renewal");
    let sent = line.at(Endpoint::EstReenroll).len();
    line.world.after(Duration::from_secs(2));
    assert_eq!(line.at(Endpoint::EstReenroll).len(), sent, "X29");
    assert!(line.status()["svid"].is_object());
    line.world.mis.policy(|p| p.client_certificates = ClientCertificates::Requested);
    line.wait_for_another_svid(&held);
    line.check_wire();
}
