//! Texts from servers and agents: how much of them is logged, stored and shown, and that no
//! terminal obeys them.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::thread;

use development_mis::{DocumentFault, Endpoint, Fault};
use serde_json::{Value, json};

use crate::support::agent::AGENT;
use crate::world::World;

/// Characters that a terminal would obey.
const OBEYED: [char; 6] = ['\u{1b}', '\u{7}', '\u{9b}', '\u{200f}', '\u{202e}', '\u{2066}'];

fn hostile() -> String {
    format!("\u{1b}]0;owned\u{7}\u{9b}2J\u{200f}\u{202e}\u{2066}\u{2028}{}", "x".repeat(20_000))
}

fn is_harmless(text: &str) -> bool {
    !text.contains(|c: char| OBEYED.contains(&c) || (c.is_control() && c != '\n') || c == '\u{2028}')
}

/// Bytes of the log that one refused document may cost, and of a status that shows it.
const LOGGED: usize = 16 * 1024;
const SHOWN: usize = 16 * 1024;

#[test]
fn text_of_a_server_is_logged_and_shown_in_short() {
    let mut world = World::new();
    let text = hostile();
    let problem = |status: u16, detail: &str| {
        json!({ "type": text, "title": text, "status": status, "detail": detail, "instance": text })
            .to_string()
    };
    let is_problem = [("content-type", "application/problem+json")];
    let replaced = |body: String| Fault::Document(DocumentFault::Replace(body.into_bytes()));
    let long = |begin: &str| format!("{begin}{}", "y".repeat(100_000));
    let faults = [
        (Endpoint::Discovery, Fault::answer(503, &is_problem, problem(503, "one"))),
        (Endpoint::Discovery, Fault::answer(404, &is_problem, problem(404, "another"))),
        (Endpoint::Discovery, Fault::answer(500, &[("content-type", "text/plain")], text.clone())),
        (
            Endpoint::Discovery,
            Fault::answer(500, &[("content-type", "text/html")], long("<html><title>\u{1b}[2J")),
        ),
        (Endpoint::Discovery, replaced(json!({ "trustDomain": [text] }).to_string())),
        (
            Endpoint::Discovery,
            replaced(json!({ text.as_str(): 1, "trustDomain": { text.as_str(): 1 } }).to_string()),
        ),
        (Endpoint::Bundle, replaced(format!(r#"{{"trust_domains":{{{0}:1,{0}:1}}}}"#, json!(long(&text))))),
        (Endpoint::Bundle, replaced(json!({ "keys": long(&text) }).to_string())),
        (
            Endpoint::Bundle,
            replaced(
                json!({ "keys": [{ "kty": "EC", "use": "x509-svid", "x5c": [long(&text)] }] }).to_string(),
            ),
        ),
        (
            Endpoint::Enrollment,
            Fault::answer(201, &[("content-type", "application/json")], json!({ "svid": text }).to_string()),
        ),
        (
            Endpoint::Enrollment,
            Fault::answer(
                201,
                &[],
                json!({ "svidProfileUri": text, "svid": { "certificateChainPem": [] } }).to_string(),
            ),
        ),
        (Endpoint::Enrollment, Fault::answer(429, &is_problem, problem(429, "a third"))),
    ];
    world.mis.sticky_fault(faults[0].0, faults[0].1.clone());
    world.device.start();
    for (endpoint, fault) in faults {
        let named = format!("{endpoint:?} {fault:.60?}");
        world.mis.clear_faults();
        world.mis.sticky_fault(endpoint, fault);
        let before = (world.device.log().len(), world.seen(endpoint).len());
        world.wait_for_requests(endpoint, before.1 + 3);
        let (status, shown) = world.device.get("/v1/status").unwrap();
        assert_eq!(status, 200);
        assert!(shown.len() < SHOWN, "{named}: a status of {} bytes", shown.len());
        let log = world.device.log();
        // Three times the same, and what else was logged meanwhile.
        assert!(log.len() - before.0 < 3 * LOGGED, "{named}: {} bytes of log", log.len() - before.0);
        assert!(is_harmless(&log), "{named}");
        assert!(is_harmless(shown.trim_end()), "{named}");
    }
    let waits = std::fs::read(world.device.path("state/private/retry-after.json")).unwrap_or_default();
    assert!(waits.len() < SHOWN, "{} bytes are stored", waits.len());
    world.mis.clear_faults();
    world.device.wait_for("active");
}

/// Responses by the beginning of the request that they are sent to.
type Responses<'a> = &'a [(&'a str, String)];

/// A server on the agent's socket that sends the first response whose request it is, and else
/// closes the connection.
fn serve(socket: &Path, responses: Responses<'_>) {
    let listener = UnixListener::bind(socket).unwrap();
    let responses: Vec<_> =
        responses.iter().map(|(begin, response)| ((*begin).to_owned(), response.clone())).collect();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 4096];
            let read = stream.read(&mut request).unwrap_or_default();
            let is_for = |begin: &str| request[..read].starts_with(begin.as_bytes());
            if let Some((_, response)) = responses.iter().find(|(begin, _)| is_for(begin)) {
                let _ = stream.write_all(response.as_bytes());
            }
        }
    });
}

const TIME: &str = "2026-01-01T00:00:00Z";
const STATUS: &str = "GET /v1/status ";
const WATCH: &str = "GET /v1/watch ";

#[test]
fn commands_print_nothing_that_a_terminal_obeys() {
    let text = hostile();
    let svid = json!({
        "identity": "device", "spiffeId": text, "serial": text, "certificateChainPem": [text],
        "notBefore": TIME, "notAfter": TIME, "generation": null,
    });
    let error = json!({
        "code": text, "title": text, "detail": text, "hint": text, "status": 500, "type": text, "instance": text,
        "at": TIME, "retryAt": TIME, "permanent": true,
    });
    let identity = json!({
        "name": "device", "state": text, "ready": true,
        "spiffeId": format!("a\nState         active{text}"),
        "svid": { "serial": text, "notBefore": TIME, "notAfter": TIME, "renewAt": TIME },
        "key": { "provider": text, "protection": text, "algorithm": text },
        "lastError": error,
    });
    let status = json!({
        "trustDomain": text,
        "bundle": { "sequence": 1, "fetchedAt": TIME, "refreshAt": TIME },
        "bootstrap": {
            "notBefore": TIME, "notAfter": TIME, "sha256": text, "key": { "algorithm": text, "inTpm": false },
        },
        "initialTrust": { "caFile": text, "anchors": 1, "pins": 0, "systemRoots": false },
        "lastError": error,
        "identities": [identity],
    });
    let accepted = json!({ "accepted": true, "detail": text });
    let refusal = json!({
        "type": text, "title": text, "status": 500, "code": text, "detail": text, "hint": text
    });
    let event = json!({ "status": status, "svids": [svid], "bundle": { "keys": [] } });
    let ok = |body: String| format!("HTTP/1.1 200 OK\r\n\r\n{body}");
    let run = |responses: Responses<'_>, arguments: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        serve(&socket, responses);
        // A response must not cost more memory than a command has a use for.
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -v 400000; exec timeout 60 \"$0\" \"$@\"", AGENT]);
        let output = command.args(arguments).arg("--socket").arg(&socket).output().unwrap();
        let (out, err) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert!(is_harmless(&out) && is_harmless(&err), "{arguments:?}: {out:?} {err:?}");
        (output.status.code(), out, err)
    };
    let to_all = |response: String| [("", response)];
    let status_is = |status: &Value| (STATUS, ok(status.to_string()));
    for arguments in [&["status"][..], &["status", "--json"]] {
        let (code, out, err) = run(&[status_is(&status)], arguments);
        assert_eq!(code, Some(0), "{err}");
        let states = out.lines().filter(|line| line.starts_with("State "));
        assert_eq!(
            states.count(),
            usize::from(arguments.len() == 1),
            "no text begins a line of its own: {out}"
        );
    }
    assert_eq!(run(&to_all(ok(svid.to_string())), &["svid"]).0, Some(0));
    assert_eq!(run(&to_all(ok(svid.to_string())), &["svid", "--json"]).0, Some(0));
    // What is more than a text is refused where it is not what it should be.
    for (member, arguments) in [("identity", ["svid", "--json"]), ("notAfter", ["svid", "--json"])] {
        let mut svid = svid.clone();
        svid[member] = json!(text);
        assert_eq!(run(&to_all(ok(svid.to_string())), &arguments).0, Some(1), "{member}");
    }
    for (pointer, value) in
        [("/identities/0/name", json!(text)), ("/lastError/at", json!(text)), ("/identities", json!([]))]
    {
        let mut status = status.clone();
        *status.pointer_mut(pointer).unwrap() = value;
        assert!(run(&[status_is(&status)], &["status"]).0 <= Some(1), "{pointer}");
        assert_eq!(run(&[status_is(&status)], &["renew"]).0, Some(1), "{pointer}");
    }
    let commands = [status_is(&status), ("POST ", ok(accepted.to_string()))];
    assert_eq!(run(&commands, &["retry"]).0, Some(0));
    assert_eq!(run(&commands, &["renew", "--json"]).0, Some(0));
    assert_eq!(run(&commands, &["retire", "--yes"]).0, Some(1), "there is no trust domain to confirm");
    let mut named = status.clone();
    named["identities"][0]["spiffeId"] = json!("spiffe://factory.example/margo/device/x");
    let commands = [status_is(&named), ("POST ", ok(accepted.to_string()))];
    run(&commands, &["retire", "--yes"]);
    for command in ["status", "svid", "bundle", "retry", "renew", "retire"] {
        let refused = format!("HTTP/1.1 500 {text}\r\n\r\n{refusal}");
        assert_eq!(run(&to_all(refused), &[command]).0, Some(1), "{command}");
        let unknown = json!({ text.as_str(): text }).to_string();
        assert_eq!(run(&to_all(ok(unknown)), &[command]).0, Some(1), "{command}");
        let tree = format!(r#"{{"keys":[{}{{}}],"identities":[[]]}}"#, "{},".repeat(2_500_000));
        assert!(run(&to_all(ok(tree)), &[command]).0 <= Some(1), "{command}");
    }
    let watched = |event: &str| (WATCH, ok(format!("event: state\ndata: {event}\n\n")));
    let responses = [watched(&event.to_string()), status_is(&status)];
    assert_eq!(run(&responses, &["wait", "--timeout", "1s"]).0, Some(0));
    let tree = format!(r#"{{"keys":[{}{{}}]}}"#, "{},".repeat(2_500_000));
    let event = format!(r#"{{"status":{status},"svids":[],"bundle":{tree}}}"#);
    run(&[watched(&event)], &["wait", "--timeout", "1s", "--for", "bundle"]);
}
