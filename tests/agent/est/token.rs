//! Enrollment tokens: where they come from, when they are sent, and what is left of them (X31, X43,
//! X44).

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use development_mis::{Authorization, Endpoint, Fault, RetryAfter, Token};

use super::{CLIENT, Line, NAME, assert_repeated, statuses};
use crate::identities;
use crate::world;

const BY_FILE: &str = "token = \"file:{dir}/token\"\n";

/// Every file below a directory.
fn files_below(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() { files_below(&path, found) } else { found.push(path) }
    }
}

#[test]
fn token_enrolls_and_the_svid_renews() {
    let mut line = Line::new();
    let (token, file) = line.hand_out_token();
    line.start("token = \"file:{dir}/token\"\nremove_token = true\n", world::SOON);
    let status = line.wait_for("an SVID", |client| client["svid"].is_object());
    assert_eq!(status["spiffeId"], CLIENT);
    let seen = line.requests();
    let operations: Vec<_> =
        seen.iter().map(|entry| (entry.path.rsplit('/').next().unwrap(), entry.authorization)).collect();
    let expected = [("cacerts", false), ("simpleenroll", true), ("cacerts", false)];
    assert_eq!(operations[..3], expected, "what is not proven to be an EST server gets no token (X59)");
    assert!(!file.exists(), "the token is used up");
    let renewals = line.world.wait_for_requests(Endpoint::EstReenroll, 2);
    assert!(renewals.iter().all(|entry| entry.status == Some(200)), "{renewals:?}");
    line.check_wire();
    // The same key all along (X66), and one token.
    let record = line.world.mis.est().record();
    let keys: BTreeSet<_> = record.iter().map(|issued| issued.key_sha256.clone()).collect();
    assert_eq!(keys.len(), 1, "{record:?}");
    assert!(line.world.mis.est().alerts().is_empty());
    // Nothing of it is left anywhere (X43).
    line.world.device.stop();
    let mut files = Vec::new();
    files_below(line.world.device.dir(), &mut files);
    for file in files {
        let content = fs::read(&file).unwrap_or_default();
        let secret = token.secret.as_bytes();
        assert!(!content.windows(secret.len()).any(|part| part == secret), "{}", file.display());
    }
}

#[test]
fn token_is_picked_up_when_it_appears() {
    let mut line = Line::new();
    line.start("token = \"file:{dir}/token\"\n", "");
    let waits = line.wait_for("the need of a token", |client| client["state"] == "waiting-for-token");
    assert_eq!(waits["lastError"]["code"], "token-needed", "{waits:#}");
    assert!(waits["lastError"]["hint"].to_string().contains("miaf-agent enroll"), "{waits:#}");
    assert!(line.requests().is_empty());
    let (_, file) = line.hand_out_token();
    line.wait_for("an SVID", |client| client["state"] == "active");
    assert!(file.exists(), "nothing says that it is to be removed");
    // It is spent, and is not sent again: not after a restart, nor when its file is touched.
    line.world.device.stop();
    line.world.device.start();
    line.wait_for("an SVID", |client| client["state"] == "active");
    assert_eq!(line.world.seen(Endpoint::EstEnroll).len(), 1);
    line.check_wire();
}

#[test]
fn token_is_handed_over_by_command() {
    let mut line = Line::new();
    line.start("", "");
    line.wait_for("the need of a token", |client| client["state"] == "waiting-for-token");
    let token = line.world.mis.est().token(CLIENT);
    let file = line.world.device.path("by-hand");
    fs::write(&file, token.user_pass()).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let file = file.to_str().unwrap();
    identities::run(&line.world.device, &["enroll", "--identity", NAME, "--token-file", file]);
    line.wait_for("an SVID", |client| client["state"] == "active");
    let again = line.world.device.run(&["enroll", "--identity", NAME, "--token-file", file]);
    let said = String::from_utf8_lossy(&again.stderr);
    assert!(!again.status.success() && said.contains("used up") && !said.contains(&token.secret), "{said}");
    line.check_wire();
}

#[test]
fn refused_token_gives_way_to_another_at_once() {
    let mut line = Line::new();
    let (token, _) = line.hand_out_token();
    line.world.mis.est().invalidate(&token.username).unwrap();
    line.start("token = \"file:{dir}/token\"\n", "");
    let error = line.wait_for_error("token-refused");
    assert!(error["detail"].as_str().unwrap().contains("It is sent again, 4 times at most"), "{error:#}");
    let says_where = format!("or put it into {}, which", line.world.device.path("token").display());
    assert!(error["hint"].to_string().contains(&says_where), "{error:#}");
    let log = line.world.device.log();
    let logged = log.lines().find(|line| line.contains("token-refused")).unwrap_or_default();
    assert!(logged.contains(&says_where), "{log}");
    line.hand_out_token();
    line.wait_for("an SVID", |client| client["state"] == "active");
    let attempts = line.world.seen(Endpoint::EstEnroll);
    let statuses: Vec<_> = attempts.iter().map(|entry| entry.status).collect();
    assert_eq!(statuses, [Some(401), Some(200)]);
    let keys: BTreeSet<_> = attempts.iter().map(|entry| entry.csr_spki_sha256.clone()).collect();
    assert_eq!(keys.len(), 1, "the key that the first token may be bound to");
}

/// The error that the file of a token causes.
fn unusable(line: &Line, says: &str) -> String {
    let error = line.wait_for_error(says);
    assert_eq!(error["code"], "token-unusable", "{error:#}");
    assert!(error["hint"].is_string(), "{error:#}");
    error.to_string()
}

#[test]
fn token_file_that_is_no_token_is_named_until_it_is_corrected() {
    let mut line = Line::new();
    let file = line.world.device.path("token");
    line.start(BY_FILE, "");
    let long = format!("user:{}", "hunter2".repeat(150));
    for (content, says) in [
        (&b"hunter2hunter2"[..], "colon"),
        (b"user:", "secret"),
        (b"user:hunter2\x07", "control character"),
        (b"user:hunter2\n\nmore", "control character"),
        (b"user:hunter2\xff", "UTF-8"),
        (long.as_bytes(), "1024"),
        (b"", "empty"),
    ] {
        fs::write(&file, content).unwrap();
        let error = unusable(&line, says);
        assert!(!error.contains("hunter2"), "{error}");
    }
    assert!(line.requests().is_empty(), "none of them was sent");
    line.hand_out_token();
    line.wait_for_state("active");
    assert!(!line.world.device.log().contains("hunter2"));
    line.check_wire();
}

#[test]
fn token_file_open_to_all_is_warned_of_when_it_appears() {
    let mut line = Line::new();
    line.start(BY_FILE, "");
    line.wait_for_state("waiting-for-token");
    let token = line.world.mis.est().token(CLIENT);
    let (file, aside) = (line.world.device.path("token"), line.world.device.path("aside"));
    fs::write(&aside, token.user_pass()).unwrap();
    fs::set_permissions(&aside, fs::Permissions::from_mode(0o644)).unwrap();
    fs::rename(&aside, &file).unwrap();
    line.wait_for_state("active");
    let log = line.world.device.log();
    assert_eq!(log.matches("is open to every user of this device, by its mode 0644").count(), 1, "{log}");
}

#[test]
fn token_comes_as_a_credential_of_systemd() {
    let mut line = Line::new();
    let credentials = line.world.device.path("credentials");
    fs::create_dir(&credentials).unwrap();
    line.world.mis.est().token(CLIENT).write(&credentials.join("est-token")).unwrap();
    let missing = line.config("token = \"credential:another\"\n", "");
    line.world.device.environment("CREDENTIALS_DIRECTORY", credentials.to_str().unwrap());
    line.world.device.configure(&missing);
    line.world.device.start();
    line.wait_for_state("waiting-for-token");
    let named = line.config("token = \"credential:est-token\"\n", "");
    line.world.device.configure(&named);
    line.world.device.signal("HUP");
    line.wait_for_state("active");
    line.check_wire();
}

#[test]
fn token_file_may_go_once_its_token_is_under_way() {
    let mut line = Line::new();
    let (_, file) = line.hand_out_token();
    line.world.mis.policy(|p| p.est.retry_after = 1);
    line.world.mis.est().hold(CLIENT).unwrap();
    line.start(BY_FILE, "");
    line.world.wait_for_requests(Endpoint::EstEnroll, 1);
    fs::remove_file(file).unwrap();
    line.restart();
    line.world.wait_for_requests(Endpoint::EstEnroll, 3);
    assert_eq!(line.status()["state"], "pending-admission");
    line.world.mis.est().release(CLIENT).unwrap();
    line.wait_for_state("active");
    assert_repeated(&line.at(Endpoint::EstEnroll));
    line.check_wire();
}

#[test]
fn token_that_is_replaced_under_way_is_sent_for_the_same_key() {
    let mut line = Line::new();
    line.hand_out_token();
    line.world.mis.policy(|p| p.est.retry_after = 1);
    line.world.mis.est().hold(CLIENT).unwrap();
    line.start(BY_FILE, "");
    line.world.wait_for_requests(Endpoint::EstEnroll, 1);
    let (second, _) = line.hand_out_token();
    let sent = line.at(Endpoint::EstEnroll).len();
    line.world.wait_for_requests(Endpoint::EstEnroll, sent + 3);
    line.world.mis.est().release(CLIENT).unwrap();
    line.wait_for_state("active");
    assert_repeated(&line.at(Endpoint::EstEnroll));
    let record = line.world.mis.est().record();
    assert_eq!(record[0].authorization, Authorization::Token(second.username), "{record:?}");
    assert_eq!(record.len(), 1);
}

#[test]
fn token_by_command_outranks_the_one_in_the_file() {
    let mut line = Line::new();
    line.hand_out_token();
    line.world.mis.policy(|p| p.est.retry_after = 1);
    line.world.mis.est().hold(CLIENT).unwrap();
    line.start(BY_FILE, "");
    line.world.wait_for_requests(Endpoint::EstEnroll, 1);
    let by_command = line.world.mis.est().token(CLIENT);
    line.enroll_by_command(&by_command);
    // Also where the file is read once more: by a reload, after a restart, and by command.
    identities::run(&line.world.device, &["retry"]);
    line.restart();
    line.world.device.signal("HUP");
    let sent = line.at(Endpoint::EstEnroll).len();
    line.world.wait_for_requests(Endpoint::EstEnroll, sent + 3);
    line.world.mis.est().release(CLIENT).unwrap();
    line.wait_for_state("active");
    let record = line.world.mis.est().record();
    assert_eq!(record.len(), 1);
    assert_eq!(record[0].authorization, Authorization::Token(by_command.username), "{record:?}");
    assert_repeated(&line.at(Endpoint::EstEnroll));
    line.check_wire();
}

#[test]
fn token_handed_over_too_late_is_not_taken_for_used() {
    let mut line = Line::new();
    let (first, _) = line.hand_out_token();
    let stall = |on: bool| match on {
        true => line.world.mis.sticky_fault(Endpoint::EstCaCerts, Fault::Status(503)),
        false => line.world.mis.clear_faults(),
    };
    line.world.mis.fault(Endpoint::EstEnroll, Fault::Held(RetryAfter::Seconds(1)));
    line.world.device.configure(&line.config(BY_FILE, ""));
    line.world.device.start();
    line.world.wait_for_requests(Endpoint::EstEnroll, 1);
    stall(true); // what is issued from now on lacks its issuers
    line.world.wait_for_requests(Endpoint::EstEnroll, 2);
    let unused = line.world.mis.est().token(CLIENT);
    line.enroll_by_command(&unused);
    stall(false);
    line.wait_for_state("active");
    let record = line.world.mis.est().record();
    assert_eq!(record[0].authorization, Authorization::Token(first.username));
    assert_eq!(record.len(), 1);
    line.enroll_by_command(&unused); // "used up" would be wrong
}

#[test]
fn token_is_refused_five_times_and_then_no_more() {
    let mut line = Line::new();
    let (token, _) = line.hand_out_token();
    line.world.mis.est().invalidate(&token.username).unwrap();
    line.start(BY_FILE, "");
    for refused in 1..=4 {
        line.world.wait_for_requests(Endpoint::EstEnroll, refused);
        let says = format!("It is sent again, {} times at most", 5 - refused);
        line.wait_for_error(&says);
        // Neither a restart nor a reload hastens it, nor does the same file written once more.
        line.restart();
        token.write(&line.world.device.path("token")).unwrap();
        line.world.device.signal("HUP");
        line.wait_for_error(&says);
        line.world.after(Duration::from_secs(2));
        assert_eq!(line.at(Endpoint::EstEnroll).len(), refused, "the pace outlives the process");
        line.enroll_by_command(&token); // an operator's word does, and the count goes on
    }
    line.world.wait_for_requests(Endpoint::EstEnroll, 5);
    line.wait_for_state("waiting-for-token");
    line.wait_for_error("5 times");
    line.restart();
    line.wait_for_error("the MIS has refused it 5 times");
    line.restart();
    assert_eq!(line.at(Endpoint::EstEnroll).len(), 5, "silence");
    // The same file is tried again on an operator's word, and another one at once.
    identities::run(&line.world.device, &["retry"]);
    line.world.wait_for_requests(Endpoint::EstEnroll, 6);
    line.wait_for_error("It is sent again, 4 times at most");
    line.hand_out_token();
    line.wait_for_state("active");
    let attempts = line.at(Endpoint::EstEnroll);
    assert_eq!(statuses(&attempts), [[Some(401); 6].as_slice(), &[Some(200)]].concat());
    assert_repeated(&attempts);
    line.check_wire();
}

/// Every secret in its forms: as it is, as it is sent, and as JSON escapes it.
fn forms(token: &Token) -> Vec<String> {
    let user_pass = token.user_pass();
    let sent = BASE64.encode(&user_pass);
    let escaped = sent.chars().map(|one| format!("\\u{:04x}", u32::from(one))).collect();
    vec![token.secret.clone(), user_pass, sent, escaped]
}

#[test]
fn secret_is_shown_nowhere_whatever_the_server_echoes() {
    let mut line = Line::new();
    let (token, file) = line.hand_out_token();
    let header = format!("Basic {}", BASE64.encode(token.user_pass()));
    let echo = |kind: &str, body: String, status: u16| Fault::answer(status, &[("content-type", kind)], body);
    let problem = format!(
        "{{\"type\":\"about:blank\",\"title\":\"echo\",\"detail\":\"you sent {header}, {}\",\"status\":500}}",
        token.user_pass()
    );
    let json = format!("{{\"headers\":{{\"Authorization\":\"{header}\"}}}}");
    let faults = [
        (echo("application/json", json, 500), "500"),
        (echo("application/problem+json", problem, 502), "502"),
        (echo("text/html", format!("<p>{header} {}</p>", token.secret), 503), "503"),
        (echo("text/plain", header.clone(), 200), "cannot be used"),
        (Fault::redirect(302, &format!("https://127.0.0.1/?{}", token.secret)), "redirect"),
        (echo("text/plain", forms(&token)[3].clone(), 504), "504"),
    ];
    let mut seen = String::new();
    line.world.mis.sticky_fault(Endpoint::EstEnroll, faults[0].0.clone());
    line.start(BY_FILE, "[log]\nlevel = \"trace\"\n");
    for (fault, says) in faults {
        line.world.mis.sticky_fault(Endpoint::EstEnroll, fault);
        seen += &line.wait_for_error(says).to_string();
        for path in ["/v1/status", "/metrics"] {
            seen += &line.world.device.get(path).unwrap().1;
        }
        seen += &String::from_utf8(line.world.device.run(&["status"]).stdout).unwrap();
    }
    line.world.mis.clear_faults();
    line.wait_for_state("active");
    line.world.device.stop();
    fs::remove_file(file).unwrap();
    let mut files = Vec::new();
    files_below(line.world.device.dir(), &mut files);
    assert!(files.iter().any(|file| file.ends_with("agent.log")), "the log is one of them: {files:?}");
    for secret in forms(&token) {
        assert!(!seen.contains(&secret), "{secret} in {seen}");
        for file in &files {
            let content = fs::read(file).unwrap_or_default();
            let is_there = content.windows(secret.len()).any(|part| part == secret.as_bytes());
            assert!(!is_there, "{secret} in {}", file.display());
        }
    }
    line.check_wire();
}
