//! A trust domain that the configuration does not name: it is learnt from the first SVID, and kept from
//! then on (X22).

use std::fs;
use std::time::Duration;

use development_mis::{Endpoint, EstFault, Fault, MintSpec, SvidFault};
use serde_json::Value;

use super::{CLIENT, Line, NAME, assert_repeated};
use crate::grpc::Grpc;
use crate::identities;
use crate::support::agent::Device;

const BY_FILE: &str = "token = \"file:{dir}/token\"\n";
const NAMED: &str = "trust_domain = \"factory.example\"\n";
const ELSEWHERE: &str = "spiffe://other.example/margo/wfm/wfm-1/client/line-8";

/// The configuration without the name of the trust domain, with an identity for each of these names.
fn unnamed(line: &Line, others: &[&str]) -> String {
    let mut config = line.config(BY_FILE, "").replace(NAMED, "");
    for name in others {
        config += &format!(
            "\n[[identity]]\nname = \"{name}\"\nenroll = \"est\"\n[identity.est]\n\
             token = \"file:{{dir}}/{name}-token\"\n"
        );
    }
    config
}

fn start(line: &mut Line, config: &str) {
    line.world.device.configure(config);
    line.world.device.start();
}

fn trust_domain(device: &Device) -> Value {
    device.status_document()["trustDomain"].clone()
}

fn wait_for_bundle(device: &Device) {
    device.wait_until("the bundle", |device| device.status_document()["bundle"].is_object());
}

/// Every enrollment from now on leads to another trust domain. The same CA signs what is issued.
fn issue_elsewhere(line: &Line) {
    let fault = SvidFault::OtherTrustDomain("other.example".into());
    line.world.mis.sticky_fault(Endpoint::EstEnroll, Fault::Svid(fault));
}

fn client(name: &str) -> String {
    format!("spiffe://factory.example/margo/wfm/wfm-1/client/{name}")
}

/// A token for another identity than the first.
fn hand_out_token(line: &Line, name: &str) {
    let file = line.world.device.path(&format!("{name}-token"));
    line.world.mis.est().token(&client(name)).write(&file).unwrap();
}

/// Has another identity enroll, and waits until its SVID of another trust domain is refused.
fn refuses_another(line: &Line, name: &str) {
    issue_elsewhere(line);
    hand_out_token(line, name);
    let mut refused = Value::Null; // the next error may be another already
    line.world.device.wait_until("the refusal", |device| {
        refused = identities::identity(device, name);
        refused["lastError"]["code"] == "svid-refused"
    });
    let error = &refused["lastError"];
    let detail = error["detail"].as_str().unwrap();
    assert!(detail.contains("other.example") && detail.contains("factory.example"), "{error:#}");
    assert!(error["hint"].as_str().unwrap().contains("in the trust domain of this device"), "{error:#}");
    // This identity has nothing to retire: that would not move the device.
    assert!(!error["hint"].as_str().unwrap().contains(&format!("retire --identity {name}")), "{error:#}");
    assert!(refused["svid"].is_null(), "{refused:#}");
    assert_eq!(trust_domain(&line.world.device), "factory.example");
}

#[test]
fn trust_domain_is_learnt_from_the_first_svid() {
    let mut line = Line::new();
    let config = unnamed(&line, &[]);
    start(&mut line, &config);
    let device = &line.world.device;
    wait_for_bundle(device);
    line.wait_for_state("waiting-for-token");
    assert!(trust_domain(device).is_null());
    let shown = identities::run(device, &["status"]);
    assert!(shown.contains("Trust domain  not known yet: it is learnt from the first SVID\n"), "{shown}");
    assert_eq!(device.get("/v1/bundle").unwrap().0, 200, "operators compare it with what was issued");
    for method in ["FetchX509Bundles", "FetchJWTBundles"] {
        let (_, why) = Grpc::connect(device).call(method).end();
        assert!(why.contains("There is no trust domain now"), "{method}: {why}");
    }
    line.hand_out_token();
    assert_eq!(line.wait_for_state("active")["spiffeId"], CLIENT);
    let is_known = |line: &Line| {
        assert_eq!(trust_domain(&line.world.device), "factory.example");
        let bundles = Grpc::connect(&line.world.device).call("FetchX509Bundles").message();
        assert!(bundles.windows(24).any(|part| part == b"spiffe://factory.example"), "{bundles:?}");
    };
    is_known(&line);
    assert!(line.world.device.log().contains("trust domain learnt from the first SVID"));
    line.check_wire();
    // It is known after a restart before anything is read anew.
    let bundle = line.world.mis.bundle_file().unwrap();
    let aside = line.world.device.path("aside");
    fs::copy(&bundle, &aside).unwrap();
    fs::remove_file(&bundle).unwrap();
    line.world.kill();
    // A kill before the bundle was stored with the name leaves the SVID alone to say it.
    let record = line.world.device.path("state/private/bundle.json");
    let mut stored: Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    let fields = stored["record"].as_object_mut().unwrap();
    assert_eq!(fields.remove("trust_domain").unwrap(), "factory.example");
    fs::write(&record, stored.to_string()).unwrap();
    line.world.device.start();
    is_known(&line);
    fs::copy(&aside, &bundle).unwrap();
    line.wait_for("no error", |client| client["lastError"].is_null());
    assert_eq!(line.world.device.get("/readyz").unwrap().0, 200);
}

#[test]
fn nothing_is_learnt_from_an_svid_without_a_path() {
    let mut line = Line::new();
    line.hand_out_token();
    let est = line.world.mis.est();
    est.add_domain("other", "other.example").unwrap();
    let (bundle, right) = (line.world.device.path("bundle.json"), line.world.mis.bundle_file().unwrap());
    fs::write(&bundle, est.bundle_of("other").unwrap()).unwrap();
    let config = unnamed(&line, &[]).replace(&right.display().to_string(), "{dir}/bundle.json");
    line.world.mis.sticky_fault(Endpoint::EstCaCerts, Fault::Est(EstFault::WithoutIntermediates));
    start(&mut line, &config.replace(BY_FILE, &format!("{BY_FILE}remove_token = true\n")));
    line.wait_for_error("not one of the trust bundle");
    assert!(trust_domain(&line.world.device).is_null());
    // The operator corrects it, and the server lacks what leads to it.
    let mut corrected: Value = serde_json::from_slice(&fs::read(&right).unwrap()).unwrap();
    corrected["spiffe_sequence"] = 1_000_000.into();
    fs::write(line.world.device.path("new"), corrected.to_string()).unwrap();
    fs::rename(line.world.device.path("new"), &bundle).unwrap();
    for is_after_restart in [false, true] {
        if is_after_restart {
            line.restart();
        }
        line.wait_for_error("Nothing leads from the SVID");
        let asked = line.at(Endpoint::EstCaCerts).len();
        line.world.wait_for_requests(Endpoint::EstCaCerts, asked + 2); // judged at each refresh
        assert!(line.status()["svid"].is_null());
        assert!(trust_domain(&line.world.device).is_null());
    }
    line.world.mis.clear_faults();
    line.wait_for_state("active");
    assert_eq!(trust_domain(&line.world.device), "factory.example");
    assert_eq!(line.world.mis.est().record().len(), 1, "it is adopted without another issuance");
    assert!(!line.world.device.path("token").exists(), "and the token is used up with it");
    line.check_wire();
}

#[test]
fn learnt_trust_domain_refuses_another_identity_of_another() {
    let mut line = Line::new();
    line.hand_out_token();
    let config = unnamed(&line, &["second", "third"]);
    start(&mut line, &config);
    line.wait_for_state("active");
    refuses_another(&line, "second");
    line.restart();
    refuses_another(&line, "third");
    let first = line.status();
    assert!(first["state"] == "active" && first["lastError"].is_null(), "{first:#}");
    line.world.mis.clear_faults();
    for name in ["second", "third"] {
        hand_out_token(&line, name);
        let active = identities::wait_for_state(&line.world.device, name, "active");
        assert_eq!(active["spiffeId"], client(name));
    }
    // The SVID of one identity is lost: that of another still says where this device is.
    line.world.kill();
    for name in [NAME, "second"] {
        fs::write(line.world.device.path(&format!("state/private/identities/{name}/identity.json")), "lost")
            .unwrap();
    }
    line.world.device.start();
    assert_eq!(trust_domain(&line.world.device), "factory.example");
    refuses_another(&line, "second");
    line.check_wire();
}

#[test]
fn first_accepted_svid_decides_between_two_trust_domains() {
    let mut line = Line::new();
    line.hand_out_token();
    hand_out_token(&line, "second");
    // One of the two is issued somewhere else.
    let elsewhere = SvidFault::OtherTrustDomain("other.example".into());
    line.world.mis.fault(Endpoint::EstEnroll, Fault::Svid(elsewhere));
    let config = unnamed(&line, &["second"]);
    start(&mut line, &config);
    let device = &line.world.device;
    let (mut accepted, mut refused) = (Value::Null, Value::Null);
    device.wait_until("one of each", |device| {
        let [one, other] = [NAME, "second"].map(|name| identities::identity(device, name));
        (accepted, refused) = if one["state"] == "active" { (one, other) } else { (other, one) };
        accepted["state"] == "active" && refused["lastError"]["code"] == "svid-refused"
    });
    let name = trust_domain(device);
    let of = format!("spiffe://{}/", name.as_str().unwrap());
    assert!(accepted["spiffeId"].as_str().unwrap().starts_with(&of), "{accepted:#}");
    let detail = refused["lastError"]["detail"].as_str().unwrap();
    assert!(detail.contains("other.example") && detail.contains("factory.example"), "{refused:#}");
    line.check_wire();
}

#[test]
fn expired_svid_keeps_the_learnt_trust_domain() {
    let mut line = Line::new();
    line.hand_out_token();
    let short = Fault::Svid(SvidFault::Lifetime(Duration::from_secs(6)));
    line.world.mis.fault(Endpoint::EstEnroll, short);
    line.world.mis.sticky_fault(Endpoint::EstReenroll, Fault::answer(503, &[], Vec::new()));
    let config = unnamed(&line, &["second"]);
    start(&mut line, &config);
    line.wait_for("an SVID", |client| client["svid"].is_object());
    line.wait_for("its end", |client| client["ready"] == false);
    line.restart();
    assert_eq!(trust_domain(&line.world.device), "factory.example");
    refuses_another(&line, "second");
}

#[test]
fn configuration_that_contradicts_the_learnt_name_is_an_error() {
    let mut line = Line::new();
    line.hand_out_token();
    let config = unnamed(&line, &["second"]);
    start(&mut line, &config);
    let before = line.wait_for_state("active");
    let named = unnamed(&line, &["second"]).replace("[mis]\n", "[mis]\ntrust_domain = \"other.example\"\n");
    let guarded = |name: &str| {
        let entry = format!("name = \"{name}\"\n");
        unnamed(&line, &["second"]).replace(&entry, &format!("{entry}spiffe_id = \"{ELSEWHERE}\"\n"))
    };
    for config in [named, guarded("second"), guarded(NAME)] {
        line.world.device.configure(&config);
        line.world.device.signal("HUP");
        let mut error = Value::Null;
        line.world.device.wait_until("the error", |device| {
            error = device.status_document()["lastError"].clone();
            error["code"] == "discovery-refused"
        });
        let detail = error["detail"].as_str().unwrap();
        // No file and no document says so.
        assert!(
            detail
                .starts_with("the configuration names the trust domain \"other.example\", but this device's"),
            "{error:#}"
        );
        assert!(error["title"].as_str().unwrap().starts_with("The configuration names"), "{error:#}");
        assert!(error["hint"].as_str().unwrap().contains("Correct trust_domain"), "{error:#}");
        assert!(error["permanent"] == true, "{error:#}");
        let held = line.status();
        assert_eq!(held["svid"]["serial"], before["svid"]["serial"], "{held:#}");
        assert_eq!(trust_domain(&line.world.device), "factory.example");
        assert_eq!(line.world.device.get("/readyz").unwrap().0, 200, "the SVID and its bundle are served");
        // What is learnt may be written down.
        line.world
            .device
            .configure(&unnamed(&line, &["second"]).replace("[mis]\n", &format!("[mis]\n{NAMED}")));
        line.world.device.signal("HUP");
        line.world.device.wait_until("no error", |device| device.status_document()["lastError"].is_null());
    }
}

#[test]
fn retired_identity_takes_the_learnt_trust_domain_with_it() {
    let mut line = Line::new();
    line.hand_out_token();
    let config = unnamed(&line, &[]);
    start(&mut line, &config);
    line.wait_for_state("active");
    identities::run(&line.world.device, &["retire", "--yes"]);
    line.wait_for("no SVID", |client| client["svid"].is_null());
    line.world.device.wait_until("no name", |device| trust_domain(device).is_null());
    issue_elsewhere(&line);
    line.hand_out_token();
    let moved = line.wait_for_state("active");
    assert!(moved["spiffeId"].as_str().unwrap().starts_with("spiffe://other.example/"), "{moved:#}");
    assert_eq!(trust_domain(&line.world.device), "other.example");
}

#[test]
fn removed_identity_takes_the_learnt_trust_domain_with_it() {
    let mut line = Line::new();
    line.hand_out_token();
    let config = unnamed(&line, &[]);
    start(&mut line, &config);
    line.wait_for_state("active");
    issue_elsewhere(&line);
    hand_out_token(&line, "other");
    let config = config.replace(NAME, "other").replace("{dir}/token", "{dir}/other-token");
    line.world.device.configure(&config);
    line.world.device.signal("HUP");
    let moved = identities::wait_for_state(&line.world.device, "other", "active");
    assert!(moved["spiffeId"].as_str().unwrap().starts_with("spiffe://other.example/"), "{moved:#}");
    assert_eq!(trust_domain(&line.world.device), "other.example");
    line.world.kill();
    line.world.device.start();
    assert_eq!(trust_domain(&line.world.device), "other.example");
}

/// A chain that an operator brings is judged like one that was issued over the network.
#[test]
fn trust_domain_is_learnt_from_a_chain_by_hand() {
    let mut line = Line::new();
    let manual = |name: &str| format!("\n[[identity]]\nname = \"{name}\"\nenroll = \"manual\"\n");
    let config = unnamed(&line, &[]) + &manual("by-hand") + &manual("other");
    start(&mut line, &config);
    let device = &line.world.device;
    wait_for_bundle(device);
    let bring = |name: &str, id: &str, faults: Vec<SvidFault>| {
        let csr = identities::run(device, &["csr", "--identity", name, "--spiffe-id", id]);
        let minted = line.world.mis.mint(&MintSpec { faults, ..MintSpec::csr(csr) }).unwrap();
        let chain = device.path("chain.pem");
        fs::write(&chain, minted.chain_pem).unwrap();
        device.run(&["install", "--identity", name, chain.to_str().unwrap()])
    };
    assert!(bring("by-hand", CLIENT, vec![SvidFault::NoUriSan]).status.code() != Some(0));
    assert!(trust_domain(device).is_null());
    assert!(bring("by-hand", CLIENT, Vec::new()).status.success(), "{}", device.log());
    assert_eq!(trust_domain(device), "factory.example");
    let elsewhere = vec![SvidFault::OtherTrustDomain("other.example".into())];
    let refused = bring("other", &client("other"), elsewhere);
    let says = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(says.contains("of the trust domain factory.example"), "{says}");
}

#[test]
fn guard_names_the_trust_domain() {
    let mut line = Line::new();
    line.hand_out_token();
    let guard = format!("enroll = \"est\"\nspiffe_id = \"{CLIENT}\"\n");
    let config = unnamed(&line, &["second"]).replacen("enroll = \"est\"\n", &guard, 1);
    start(&mut line, &config);
    assert_eq!(trust_domain(&line.world.device), "factory.example", "before there is any SVID");
    refuses_another(&line, "second");
    // Nothing else says so: the guard may be wrong, and there is nothing to retire.
    let second = identities::identity(&line.world.device, "second");
    let hint = second["lastError"]["hint"].as_str().unwrap();
    assert!(hint.contains("correct spiffe_id under [[identity]] or trust_domain"), "{hint}");
    assert!(hint.contains("fresh token") && !hint.contains("retire"), "{hint}");
}

/// The token is used up before the guard is found to be wrong; the MIS repeats its response for a while.
#[test]
fn corrected_guard_needs_no_fresh_token() {
    let mut line = Line::new();
    line.hand_out_token();
    let guarded = |id: &str| {
        unnamed(&line, &[]).replacen(
            "enroll = \"est\"\n",
            &format!("enroll = \"est\"\nspiffe_id = \"{id}\"\n"),
            1,
        )
    };
    let right = guarded(CLIENT);
    let wrong = guarded(&CLIENT.replace("factory.example", "factory.exampel"));
    start(&mut line, &wrong);
    let error = line.wait_for_error("factory.exampel");
    assert_eq!(error["code"], "svid-refused", "{error:#}");
    let hint = error["hint"].as_str().unwrap();
    assert!(hint.contains("correct spiffe_id") && hint.contains("at once"), "{hint}");
    line.world.device.configure(&right);
    line.world.device.signal("HUP");
    line.wait_for_state("active");
    assert_repeated(&line.at(Endpoint::EstEnroll));
    line.check_wire();
}

/// A Bundle Map says which trust domain its bundle is of.
#[test]
fn bundle_map_names_the_trust_domain_of_its_only_entry() {
    let mut line = Line::new();
    let file = format!("bundle_file = \"{}\"", line.world.mis.bundle_file().unwrap().display());
    let url = format!("bundle_url = \"{}/.well-known/spiffe/bundle.json\"", line.world.mis.url());
    let config = unnamed(&line, &["second"]).replace(&file, &url);
    start(&mut line, &config);
    wait_for_bundle(&line.world.device);
    assert_eq!(trust_domain(&line.world.device), "factory.example");
    refuses_another(&line, "second");
    line.world.mis.clear_faults();
    line.hand_out_token();
    line.wait_for_state("active");
    assert_eq!(trust_domain(&line.world.device), "factory.example");
}

/// Executes the command that retires an identity, as a hint has it.
fn follow(device: &Device, hint: &str) {
    let (_, command) = hint.rsplit_once("miaf-agent ").expect(hint);
    let arguments: Vec<_> = command.split(' ').chain(["--yes"]).collect();
    assert_eq!(arguments[0], "retire", "{hint}");
    identities::run(device, &arguments);
}

/// Each identity has to leave the trust domain, whichever is the default identity.
#[test]
fn hint_moves_a_device_of_several_identities() {
    let mut line = Line::new();
    line.hand_out_token();
    hand_out_token(&line, "second");
    let config = unnamed(&line, &["second"]);
    start(&mut line, &config);
    for name in [NAME, "second"] {
        identities::wait_for_state(&line.world.device, name, "active");
    }
    issue_elsewhere(&line);
    let named = config.replace("[mis]\n", "[mis]\ntrust_domain = \"other.example\"\n");
    line.world.device.configure(&named);
    line.world.device.signal("HUP");
    for left in [1, 0] {
        let device = &line.world.device;
        let mut hint = String::new();
        device.wait_until("the error", |device| {
            let status = device.status_document();
            hint = status["lastError"]["hint"].as_str().unwrap_or_default().to_owned();
            let held = |identity: &&Value| identity["svid"].is_object();
            let held = status["identities"].as_array().unwrap().iter().filter(held).count();
            held == left + 1 && hint.contains("miaf-agent retire")
        });
        follow(device, &hint);
    }
    let device = &line.world.device;
    device.wait_until("no error", |device| device.status_document()["lastError"].is_null());
    assert_eq!(trust_domain(device), "other.example");
    line.hand_out_token();
    hand_out_token(&line, "second");
    for name in [NAME, "second"] {
        identities::wait_for_state(&line.world.device, name, "active");
    }
}

/// What was unusable for a while, without its key-encryption key say, comes back to a device that is in
/// another trust domain by now.
#[test]
fn svid_of_another_trust_domain_is_not_recovered() {
    let mut line = Line::new();
    line.hand_out_token();
    let config = unnamed(&line, &["second"]);
    start(&mut line, &config);
    line.wait_for_state("active");
    let record = line.world.device.path(&format!("state/private/identities/{NAME}/identity.json"));
    line.world.kill();
    let aside = line.world.device.path("aside.json");
    fs::rename(&record, &aside).unwrap();
    issue_elsewhere(&line);
    hand_out_token(&line, "second");
    line.world.device.start();
    identities::wait_for_state(&line.world.device, "second", "active");
    assert_eq!(trust_domain(&line.world.device), "other.example");
    line.world.kill();
    fs::rename(&aside, record.with_extension("json.unusable-1")).unwrap();
    line.world.device.start();
    let device = &line.world.device;
    assert_eq!(trust_domain(device), "other.example");
    line.wait_for_state("waiting-for-token");
    device.wait_until("ready", |device| device.get("/v1/identities/second/readyz").unwrap().0 == 200);
    assert!(device.status_document()["lastError"].is_null());
    assert!(line.status()["svid"].is_null());
    assert!(record.with_extension("json.unusable-1").exists(), "nothing is deleted");
    // The identity goes on in the trust domain of the device.
    line.hand_out_token();
    let active = line.wait_for_state("active");
    assert!(active["spiffeId"].as_str().unwrap().starts_with("spiffe://other.example/"), "{active:#}");
}

/// The sequence number counts on, whether a bundle says which trust domain it is of or not (B5).
#[test]
fn sequence_goes_back_neither_with_a_name_nor_without() {
    let mut line = Line::new();
    let bundle = line.world.device.path("bundle.json");
    let right = line.world.mis.bundle_file().unwrap();
    let served: Value = serde_json::from_slice(&fs::read(&right).unwrap()).unwrap();
    let plain = |sequence: u64| {
        let mut plain = served.clone();
        plain["spiffe_sequence"] = sequence.into();
        plain
    };
    let write = |document: Value| {
        let aside = bundle.with_extension("new");
        fs::write(&aside, document.to_string()).unwrap();
        fs::rename(&aside, &bundle).unwrap();
    };
    let map = |sequence: u64| serde_json::json!({ "trust_domains": { "factory.example": plain(sequence) } });
    write(plain(7));
    let config = unnamed(&line, &[]).replace(&right.display().to_string(), "{dir}/bundle.json");
    start(&mut line, &config);
    let device = &line.world.device;
    wait_for_bundle(device);
    let is_refused = || {
        device.wait_until("the refusal", |device| {
            device.status_document()["lastError"]["detail"]
                .as_str()
                .unwrap_or_default()
                .contains("lower than")
        });
    };
    write(map(3));
    is_refused();
    assert!(trust_domain(device).is_null(), "nothing of it is used");
    write(map(8));
    device.wait_until("the name", |device| trust_domain(device) == "factory.example");
    write(plain(5));
    is_refused();
    assert_eq!(device.status_document()["bundle"]["sequence"], 8);
    write(plain(9));
    device.wait_until("the bundle", |device| device.status_document()["bundle"]["sequence"] == 9);
    assert!(trust_domain(device).is_null());
}

/// Whoever says which trust domain it is: no request is made that could lead to no SVID.
#[test]
fn request_by_hand_is_for_the_trust_domain_of_the_device() {
    let mut line = Line::new();
    let bundle = line.world.mis.bundle_file().unwrap().display().to_string();
    let guard = format!("enroll = \"est\"\nspiffe_id = \"{CLIENT}\"\n");
    let manual = "\n[[identity]]\nname = \"by-hand\"\nenroll = \"manual\"\n";
    let config = unnamed(&line, &[]).replace(&bundle, "{dir}/missing.json") + manual;
    let request = |line: &Line| {
        let arguments = ["csr", "--identity", "by-hand", "--spiffe-id", ELSEWHERE];
        line.world.device.run(&arguments)
    };
    start(&mut line, &config.replacen("enroll = \"est\"\n", &guard, 1));
    let refused = request(&line);
    let says = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(says.contains("not in the trust domain of this device, factory.example"), "{says}");
    line.world.kill();
    start(&mut line, &config);
    assert!(request(&line).status.success(), "it is not known yet");
}
