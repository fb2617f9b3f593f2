//! What an identity that enrolls over EST shows, and `miaf-agent enroll`.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use development_mis::{Endpoint, EstBaseUri, Fault, SvidFault};
use serde_json::{Value, json};

use crate::est::{CLIENT, Line, NAME};
use crate::identities;
use crate::support::agent::Device;

/// Runs a command with this on stdin: exit code, stdout, stderr.
fn run_with(device: &Device, arguments: &[&str], stdin: &[u8]) -> (Option<i32>, String, String) {
    let mut command = device.command(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    let _ = process.stdin.take().unwrap().write_all(stdin); // it may have ended already
    let output = process.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn enroll(device: &Device, arguments: &[&str], stdin: &[u8]) -> (Option<i32>, String, String) {
    run_with(device, &[&["enroll", "--token-file", "-"], arguments].concat(), stdin)
}

/// A file for root alone.
fn secret_file(device: &Device, name: &str, content: &str) -> PathBuf {
    let file = device.path(name);
    fs::write(&file, content).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    file
}

fn waiting() -> Line {
    let mut line = Line::new();
    line.start("", "");
    line.wait_for("the need of a token", |client| client["state"] == "waiting-for-token");
    line
}

#[test]
fn status_and_metrics_of_est_say_what_is_needed() {
    let mut line = Line::new();
    let est_url = line.world.mis.est_url();
    line.start("token = \"file:{dir}/token\"\ntls12 = true\n", "");
    let waits = line.wait_for("the need of a token", |client| client["state"] == "waiting-for-token");
    let source = line.world.device.path("token").display().to_string();
    let expected = json!({
        "url": est_url,
        "urlSource": "configuration",
        "authorization": "token",
        "tokenSource": source,
        "hasToken": false,
        "tokenNeeded": true,
        "tokenNeededAfter": null,
        "certificate": null,
        "tls12Allowed": true,
        "standardized": true,
    });
    assert_eq!(waits["est"], expected, "{waits:#}");
    let hint = waits["lastError"]["hint"].to_string();
    assert!(hint.contains(&format!("or put it into {source}, which the agent reads by itself")), "{hint}");
    let metric = |name: &str| {
        let (_, metrics) = line.world.device.get("/metrics").unwrap();
        let sample = format!("miaf_agent_{name}{{identity=\"{NAME}\"}} ");
        let found = metrics.lines().find_map(|line| line.strip_prefix(&sample).map(str::to_owned));
        found.unwrap_or_else(|| panic!("{name} is missing from:\n{metrics}"))
    };
    assert_eq!([metric("token_needed"), metric("token_needed_soon")], ["1", "0"]);
    let printed = identities::run(&line.world.device, &["status"]);
    for part in [
        "Enrollment    est - the agent requests it from an EST server with an operator's enrollment token",
        "(named by the configuration)\n              TLS 1.2 is allowed there (tls12 = true)",
        "Token         needed now, expected in ",
        "\n                miaf-agent enroll --token-file FILE\n              or put it into ",
    ] {
        assert!(printed.contains(part), "{part:?} is missing from:\n{printed}");
    }
    line.hand_out_token();
    let active = line.wait_for("an SVID", |client| client["state"] == "active");
    assert_eq!((&active["est"]["tokenNeeded"], &active["est"]["hasToken"]), (&json!(false), &json!(false)));
    assert_eq!([metric("token_needed"), metric("token_needed_soon")], ["0", "0"]);
    assert_eq!(active["key"]["renewals"], 0);
    assert!(active["key"]["since"].is_string(), "{active:#}");
}

#[test]
fn token_from_stdin_goes_to_the_only_identity_by_token() {
    let line = waiting();
    let token = line.world.mis.est().token(CLIENT);
    // Without a line break at its end, and with no identity named.
    let (code, printed, said) = enroll(&line.world.device, &["--json"], token.user_pass().as_bytes());
    assert_eq!(code, Some(0), "{said}");
    let printed: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(printed["accepted"], true);
    line.wait_for("an SVID", |client| client["state"] == "active");
    // With one, as Windows writes it: the same token, which is used up.
    let (code, printed, said) =
        enroll(&line.world.device, &[], format!("{}\r\n", token.user_pass()).as_bytes());
    assert_eq!((code, printed.as_str()), (Some(1), ""));
    assert!(said.contains("this token is used up"), "{said}");
    assert!(said.contains("\n  Hint: Have the operator of the MIS create a fresh one\n"), "{said}");
    line.check_wire();
}

/// A token in the file that is of no use is an error for as long as one is needed, and no longer.
#[test]
fn used_token_in_the_file_is_no_error_beside_an_svid() {
    let mut line = Line::new();
    let short = Fault::Svid(SvidFault::Lifetime(std::time::Duration::from_secs(15)));
    line.world.mis.fault(Endpoint::EstEnroll, short);
    line.world.mis.sticky_fault(Endpoint::EstReenroll, Fault::Status(503));
    line.hand_out_token();
    line.start("token = \"file:{dir}/token\"\n", "");
    let first = line.wait_for("an SVID", |client| client["svid"].is_object());
    line.wait_for_state("expired");
    line.restart(); // so that the file is read now
    line.wait_for_error("it is used up: an SVID was issued for it");
    line.world.mis.clear_faults();
    line.world.mis.policy(|p| p.est.retry_after = 1);
    line.world.mis.est().hold(CLIENT).unwrap();
    line.enroll_by_command(&line.world.mis.est().token(CLIENT));
    let held = line.wait_for("the new token in use", |client| client["est"]["hasToken"] == true);
    assert_ne!(held["lastError"]["code"], "token-unusable", "{held:#}");
    line.world.mis.est().release(CLIENT).unwrap();
    let active = line.wait_for_another_svid(&first);
    assert!(active["lastError"].is_null(), "{active:#}");
    line.check_wire();
}

#[test]
fn refused_token_in_the_file_is_no_error_beside_an_svid() {
    let mut line = Line::new();
    let (token, file) = line.hand_out_token();
    line.world.mis.est().invalidate(&token.username).unwrap();
    line.start("token = \"file:{dir}/token\"\n", "");
    for refused in 1..=5 {
        line.world.wait_for_requests(Endpoint::EstEnroll, refused);
        if refused < 5 {
            line.wait_for_error(&format!("It is sent again, {} times at most", 5 - refused));
            line.enroll_by_command(&token);
        }
    }
    line.wait_for_state("waiting-for-token");
    line.restart();
    line.wait_for_error("the MIS has refused it 5 times");
    line.enroll_by_command(&line.world.mis.est().token(CLIENT));
    for _ in 0..2 {
        let active = line.wait_for_state("active");
        assert!(active["lastError"].is_null(), "{active:#}");
        line.restart();
    }
    // What is no token at all is told all the same.
    line.wait_for_state("active");
    fs::write(file, "no token").unwrap();
    line.wait_for_error("token-unusable");
}

#[test]
fn status_of_est_by_certificate_names_certificate_and_discovery() {
    let mut line = Line::new();
    let mis = &line.world.mis;
    mis.policy(|policy| policy.est.base_uri = EstBaseUri::Own);
    let (certificate, key) = mis.new_factory_credential("line").unwrap();
    mis.est().authorize(&certificate, CLIENT).unwrap();
    let est = format!("cert_file = \"{}\"\nkey = \"file:{}\"\n", certificate.display(), key.display());
    let config = line.config(&est, "");
    let (before, rest) = config.split_once("est_url = ").unwrap();
    let (_, after) = rest.split_once("[mis.trust]").unwrap();
    let config = format!("{before}discovery_url = \"{}\"\n[mis.trust]{after}", mis.discovery_url());
    line.world.device.configure(&config);
    line.world.device.start();
    let active = line.wait_for("an SVID", |client| client["state"] == "active");
    let est = &active["est"];
    assert_eq!(est["urlSource"], "discovery", "{active:#}");
    assert_eq!(est["authorization"], "certificate");
    assert_eq!(est["tokenSource"], Value::Null);
    assert_eq!(est["certificate"]["sha256"].as_str().unwrap().len(), 64, "{active:#}");
    let printed = identities::run(&line.world.device, &["status"]);
    for part in [
        "est - the agent requests it from an EST server with a certificate of this device",
        "(named by the discovery document of the MIS)\nEST cert      valid until ",
        "\nEST key       ",
    ] {
        assert!(printed.contains(part), "{part:?} is missing from:\n{printed}");
    }
    assert!(!printed.contains("\nToken ") && !printed.contains("TLS 1.2"), "{printed}");
    let (_, metrics) = line.world.device.get("/metrics").unwrap();
    assert!(!metrics.contains("token_needed"), "no operator is waited for: {metrics}");
}

#[test]
fn enroll_reads_no_token_that_a_terminal_shows() {
    let line = waiting();
    let device = &line.world.device;
    let command = device.command(&["enroll", "--token-file", "-"]);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
    // script(1) gives it a terminal.
    let output = Command::new("script").args(["-qec", &words.join(" "), "/dev/null"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("stdin is a terminal, which would show the token"), "{said}");
    assert_eq!(output.status.code(), Some(1));
}

/// Nothing of what it was given is printed, whatever is wrong with it; and nothing that was refused
/// takes the place of what is there.
#[test]
fn enroll_says_what_is_wrong_and_echoes_nothing() {
    let line = waiting();
    let device = &line.world.device;
    let secret = "Zq8vT2mWx4Lk9Rb1";
    for (content, says) in [
        (String::new(), "the enrollment token is empty"),
        ("\n".to_owned(), "the enrollment token is empty"),
        (secret.to_owned(), "colon"),
        (format!("line-7:{secret}\nanother: {secret}"), "control character"),
        (format!("\u{feff}line-7:{secret}"), "byte order mark"),
        (format!("line-7:{}{}", secret.repeat(63), "x".repeat(10)), "longer than 1024 bytes"),
        (format!("line-7:{}", secret.repeat(100)), "stdin cannot be read: "),
    ] {
        let (code, printed, said) = enroll(device, &[], content.as_bytes());
        assert_eq!((code, printed.as_str()), (Some(1), ""), "{says}");
        assert!(said.contains(says), "{says:?} is missing from: {said}");
        assert!(!said.contains(secret) && !said.contains("line-7"), "{said}");
    }
    let (code, _, said) =
        enroll(device, &[], format!("line-7:{secret}\u{0}").replace('Z', "\u{1}").as_bytes());
    assert!(code == Some(1) && !said.contains(&secret[1..]), "{said}");
    let mut bytes = format!("line-7:{secret}").into_bytes();
    bytes.push(0xff);
    let (code, _, said) = enroll(device, &[], &bytes);
    assert!(code == Some(1) && said.contains("stdin is not UTF-8 text") && !said.contains(secret), "{said}");

    let (code, _, said) = run_with(device, &["enroll", "--token-file", "/nowhere/token"], b"");
    assert!(code == Some(1) && said.contains("/nowhere/token cannot be read: "), "{said}");
    assert!(said.contains("\n  Hint: "), "{said}");
    // A secret that is an argument is not what the command takes.
    let (code, _, said) = run_with(device, &["enroll", &format!("line-7:{secret}")], b"");
    assert_eq!(code, Some(2), "{said}");
    let (code, _, said) = enroll(device, &["--identity", "other"], format!("line-7:{secret}").as_bytes());
    assert!(code == Some(1) && said.contains("other"), "{said}");
    assert_eq!(line.status()["est"]["hasToken"], false);
    assert!(line.requests().is_empty());
    assert!(!device.log().contains(secret));
}

#[test]
fn enroll_warns_of_a_file_that_everybody_can_read() {
    let line = waiting();
    let device = &line.world.device;
    let token = line.world.mis.est().token(CLIENT);
    let file = secret_file(device, "by-hand", &format!("{}\n", token.user_pass()));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let output = device.run(&["enroll", "--token-file", file.to_str().unwrap()]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("open to every user of this device, by its mode 0644"), "{said}");
    assert!(!said.contains(&token.secret));
    line.wait_for("an SVID", |client| client["state"] == "active");
}

#[test]
fn enroll_names_what_takes_tokens_where_none_or_several_do() {
    let mut line = Line::new();
    let other = "[[identity]]\nname = \"line-8\"\nenroll = \"est\"\n";
    let config = format!("{}{other}", line.config("", ""));
    line.world.device.configure(&config);
    line.world.device.start();
    line.wait_for("the need of a token", |client| client["state"] == "waiting-for-token");
    let device = &line.world.device;
    let token = line.world.mis.est().token(CLIENT);
    let (code, _, said) = enroll(device, &[], token.user_pass().as_bytes());
    assert!(
        code == Some(1) && said.contains("several identities enroll by a token: wfm-client, line-8"),
        "{said}"
    );
    assert!(said.contains("--identity wfm-client"), "{said}");
    // The hint of each names it.
    assert!(
        line.status()["lastError"]["hint"].to_string().contains("enroll --identity wfm-client --token-file")
    );
    let (code, _, said) = enroll(device, &["--identity", NAME], token.user_pass().as_bytes());
    assert_eq!(code, Some(0), "{said}");
    line.wait_for("an SVID", |client| client["state"] == "active");
    assert_eq!(identities::identity(device, "line-8")["state"], "waiting-for-token");

    let manual = config.replace("\"est\"", "\"manual\"").replace("[identity.est]\n", "");
    line.world.device.configure(&manual);
    line.world.device.signal("HUP");
    line.wait_for("another way", |client| client["enroll"] == "manual");
    let device = &line.world.device;
    let (code, _, said) = enroll(device, &[], token.user_pass().as_bytes());
    assert!(code == Some(1) && said.contains("it is not enrolled by a token"), "{said}");
    assert!(said.contains("enroll = \"est\""), "{said}");
}

#[test]
fn check_config_describes_enrollments_over_est() {
    let line = Line::new();
    let device = &line.world.device;
    let check = |config: &str| {
        device.configure(config);
        identities::run(device, &["check-config"])
    };
    let by_file = check(&line.config("token = \"file:/etc/miaf-agent/token\"\ntls12 = true\n", ""));
    for part in [
        "can be used. The identity \"wfm-client\" enrolls at the EST server https://",
        " by an enrollment token, expected in /etc/miaf-agent/token. TLS 1.2 is allowed there",
    ] {
        assert!(by_file.contains(part), "{part:?} is missing from: {by_file}");
    }
    let by_command = check(&line.config("", ""));
    assert!(by_command.contains("miaf-agent enroll --identity wfm-client --token-file FILE"), "{by_command}");
    let of_a_device =
        check(&line.config("cert_file = \"/c.pem\"\nkey = \"file:/c.key\"\nallow_nonstandard = true\n", ""));
    assert!(
        of_a_device.contains("by a certificate of this device. The identity of a device over EST is not"),
        "{of_a_device}"
    );
    let other =
        "[[identity]]\nname = \"line-8\"\nenroll = \"est\"\n[identity.est]\ntoken = \"file:/token\"\n";
    let shared = check(&format!("{}{other}", line.config("token = \"file:/token\"\n", "")));
    assert!(
        shared.contains("Warning: the identities \"wfm-client\" and \"line-8\" have one enrollment token"),
        "{shared}"
    );
    // The EST server is to be trusted, though the trust bundle is in a file.
    let config = line.config("", "");
    let from = config.find("[mis.trust]").unwrap();
    let to = config.find("[key]").unwrap();
    let without_trust = check(&format!("{}{}", &config[..from], &config[to..]));
    assert!(without_trust.contains("No trust anchor is configured for the MIS"), "{without_trust}");
}

#[test]
fn token_of_two_identities_is_warned_of_in_the_journal() {
    let mut line = Line::new();
    let other =
        "[[identity]]\nname = \"line-8\"\nenroll = \"est\"\n[identity.est]\ntoken = \"file:{dir}/token\"\n";
    let config = line.config("token = \"file:{dir}/token\"\n", "");
    line.world.device.configure(&format!("{config}{other}"));
    line.world.device.start();
    let says = "have one enrollment token";
    let device = &line.world.device;
    device.wait_until("the warning", |device| device.log().contains(says));
    assert_eq!(device.log().matches(says).count(), 1, "{}", device.log());
    // Once, however often the same configuration is begun with: here, since the state cannot be read.
    line.world.kill();
    let record = line.world.device.path("state/private/identities/line-8/identity.json");
    fs::create_dir_all(&record).unwrap();
    line.world.device.start();
    for _ in 0..3 {
        let (_, _, refused) = run_with(&line.world.device, &["retry"], b"");
        assert!(refused.contains("state cannot be read"), "{refused}");
    }
    assert_eq!(line.world.device.log().matches(says).count(), 2, "{}", line.world.device.log());
}
