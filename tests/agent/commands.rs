//! The commands status, wait and watch: what they print, how they end, and what they do while the
//! agent is not running.

use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use development_mis::{AnchorStep, Endpoint, Fault};
use miaf_agent::client::Client;
use serde_json::Value;

use crate::support::agent::{AGENT, Device, PATIENCE, event_of_default_identity, pause};
use crate::world::World;

/// A command that is running.
struct Running {
    process: Child,
    printed: Option<Receiver<String>>,
    said: Receiver<String>,
}

impl Running {
    fn new(device: &Device, arguments: &[&str]) -> Self {
        Self::start(&mut device.command(arguments))
    }

    fn start(command: &mut Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let printed = Some(lines(process.stdout.take().unwrap()));
        let said = lines(process.stderr.take().unwrap());
        Self { process, printed, said }
    }

    /// The next line on stdout.
    fn line(&self) -> String {
        self.printed.as_ref().unwrap().recv_timeout(PATIENCE).expect("another line")
    }

    /// The lines on stdout up to one of which this holds.
    fn until(&self, what: &str, holds: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = Vec::new();
        while Instant::now() < deadline {
            lines.push(self.line());
            if holds(lines.last().unwrap()) {
                return lines.pop().unwrap();
            }
        }
        panic!("no line with {what} in {lines:#?}");
    }

    /// The next line on stderr.
    fn said(&self) -> String {
        self.said.recv_timeout(PATIENCE).expect("something said")
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("sh").args(["-c", &format!("kill -s {name} {}", self.process.id())]).status();
        assert!(sent.unwrap().success());
    }

    fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            pause();
        }
        panic!("the command does not end");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Ends, and closes what it reads from, when the receiver is gone.
fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (send, receive) = channel();
    thread::spawn(move || {
        BufReader::new(from).lines().map_while(Result::ok).try_for_each(|line| send.send(line))
    });
    receive
}

fn run(device: &Device, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = device.run(arguments);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn status_shows_the_lifetime_and_the_next_step() {
    let world = World::enrolled();
    let (code, text, _) = run(&world.device, &["status"]);
    assert_eq!(code, Some(0));
    let bar = text.lines().find(|line| line.starts_with("Lifetime ")).expect("a bar");
    assert!(bar.contains("[>") && bar.contains("~~~~"), "{text}");
    assert!(text.contains("R renewal, ~ renewal window\n"), "{text}");
    assert!(text.contains("Next step     none: the agent renews the identity in "), "{text}");
    assert!(text.contains("in this device's TPM"), "{text}");
    for (command, path) in [("status", "/v1/status"), ("svid", "/v1/svid"), ("bundle", "/v1/bundle")] {
        let (code, text, _) = run(&world.device, &[command, "--json"]);
        assert_eq!((code, text), (Some(0), world.device.get(path).unwrap().1), "{command}");
    }
}

#[test]
fn wait_starts_before_the_agent_and_ends_with_the_document() {
    let mut world = World::new();
    let mut svid = Running::new(&world.device, &["wait", "--for", "svid", "--json"]);
    let mut bundle = Running::new(&world.device, &["wait", "--for", "bundle", "--timeout", "1h"]);
    thread::sleep(Duration::from_millis(500)); // both have found no agent
    world.mis.sticky_fault(Endpoint::Enrollment, Fault::Status(503));
    world.device.start();
    assert!(bundle.end().success() && bundle.line() == "there is a trust bundle");
    world.device.wait_for_error("503");
    assert!(svid.process.try_wait().unwrap().is_none(), "no SVID is no reason to end");
    world.mis.clear_faults();
    assert!(svid.end().success());
    let waited_for: Value = serde_json::from_str(&svid.line()).unwrap();
    assert_eq!(world.device.get("/readyz").unwrap().0, 200);
    assert_eq!(waited_for["serial"], world.device.status()["svid"]["serial"]);
    let (code, said, _) = run(&world.device, &["wait"]);
    assert!(code == Some(0) && said.starts_with("the SVID of spiffe://factory.example/"), "{said}");
    let (code, said, _) = run(&world.device, &["wait", "--for", "bundle", "--timeout", "0s", "--json"]);
    assert_eq!((code, said), (Some(0), world.device.get("/v1/bundle").unwrap().1));
}

#[test]
fn wait_reports_what_was_missing_at_its_timeout() {
    let mut world = World::new();
    let begun = Instant::now();
    let (code, _, said) = run(&world.device, &["wait", "--timeout", "1s"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("timed out after 1s waiting for a valid SVID: no agent answers at"), "{said}");
    assert!(begun.elapsed() >= Duration::from_secs(1), "{said}");

    world.mis.sticky_fault(Endpoint::Enrollment, Fault::problem(503, "unavailable", None));
    world.device.start();
    world.device.wait_for_error("Made by a test");
    let (code, _, said) = run(&world.device, &["wait", "--timeout", "5s"]);
    assert_eq!(code, Some(1));
    for part in [
        "the state is enrolling - ",
        "Last error: Made by a test: response of https://",
        "/api/v1/identities. Next step: none: the agent tries again ",
    ] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    let (code, _, said) = run(&world.device, &["wait", "--timeout", "soon"]);
    assert!(code == Some(2) && said.contains("--timeout"), "{said}");
}

#[test]
fn wait_goes_on_while_the_svid_is_not_valid() {
    let world = World::with(|settings| {
        settings.policy.svid_lifetime = Duration::from_secs(3);
        settings.policy.backdate = Duration::ZERO;
    });
    let mut world = world;
    world.mis.sticky_fault(Endpoint::Renewal, Fault::Status(503));
    world.device.start();
    world.device.wait_for_status("an identity", |status| status["svid"].is_object());
    world.mis.sticky_fault(Endpoint::Enrollment, Fault::Status(503));
    world.device.wait_for("expired");
    let mut wait = Running::new(&world.device, &["wait"]);
    thread::sleep(Duration::from_secs(1)); // to see that it does not end one has to wait
    assert!(wait.process.try_wait().unwrap().is_none());
    world.mis.policy(|policy| policy.svid_lifetime = Duration::from_secs(3600));
    world.mis.clear_faults();
    assert!(wait.end().success());
    assert_eq!(world.device.get("/readyz").unwrap().0, 200);
}

#[test]
fn wait_checks_again_after_a_refused_connection() {
    let mut world = World::new();
    world.configure("max_connections_per_user = 2\n");
    world.device.start();
    world.device.wait_for("active");
    let another = Client::new(world.device.path("run/agent.sock")).watch().unwrap();
    let mut wait = Running::new(&world.device, &["wait"]);
    // It watches, in the last place.
    let is_refused = |device: &Device| device.log().contains("connection refused");
    world.device.wait_until("no place for its question", is_refused);
    assert!(wait.process.try_wait().unwrap().is_none());
    drop(another); // and nothing changes
    assert!(wait.end().success());
}

#[test]
fn watch_prints_changes_and_survives_an_agent_restart() {
    let mut world = World::enrolled();
    let watch = Running::new(&world.device, &["watch"]);
    let json = Running::new(&world.device, &["watch", "--json"]);
    let first = watch.line();
    assert!(
        first.contains("Z device active: the device has a valid identity; the identity is spiffe://"),
        "{first}"
    );
    let object =
        |line: &str| event_of_default_identity(&serde_json::from_str(line).expect("an event a line"));
    assert_eq!(object(&json.line())["status"]["state"], "active");

    let (code, _, _) = run(&world.device, &["renew"]);
    assert_eq!(code, Some(0));
    let new = watch.until("a new SVID", |line| line.contains("new SVID "));
    let serial = world.device.status()["svid"]["serial"].as_str().unwrap().to_owned();
    assert!(new.contains(&serial) && new.contains("renewal in "), "{new}");
    json.until("the same", |line| object(line)["svid"]["serial"] == serial.as_str());

    world.kill();
    for command in [&watch, &json] {
        let said = command.said();
        assert!(said.starts_with("miaf-agent: ") && said.ends_with("Waiting for the agent"), "{said}");
    }
    world.mis.rotate_anchors(AnchorStep::Announce).unwrap();
    world.device.start();
    assert_eq!(watch.said(), "miaf-agent: connected to the agent");
    watch.until("the new bundle", |line| line.contains("trust bundle number 2 with 2 anchors"));
    json.until("the same", |line| object(line)["status"]["bundle"]["sequence"] == 2);
}

#[test]
fn watch_ends_quietly_with_its_reader_and_on_sigint() {
    let world = World::enrolled();
    let mut left = Running::new(&world.device, &["watch", "--json"]);
    left.line();
    left.printed = None;
    // Each change is written to a closed pipe; the thread that read from it ends at the first.
    let deadline = Instant::now() + PATIENCE;
    while left.process.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "it still writes");
        run(&world.device, &["renew"]);
        thread::sleep(Duration::from_millis(200));
    }
    assert!(left.end().success());
    assert!(left.said.recv_timeout(PATIENCE).is_err(), "nothing is said of it");

    let mut interrupted = Running::new(&world.device, &["watch"]);
    interrupted.line();
    interrupted.signal("INT");
    assert_eq!(interrupted.end().signal(), Some(2));
    assert!(interrupted.said.recv_timeout(PATIENCE).is_err(), "nothing is said of it");
}

/// As `nohup miaf-agent watch &` in a script: the shell has it ignore SIGINT, which is meant for
/// others.
#[test]
fn watch_goes_on_if_started_with_sigint_ignored() {
    let world = World::enrolled();
    let mut ignoring = Command::new("env");
    ignoring.args(["--ignore-signal=INT,QUIT,HUP"]);
    let mut watch = Running::start(world.device.complete(ignoring.arg(AGENT), &["watch"]));
    watch.line();
    for ignored in ["INT", "QUIT", "HUP"] {
        watch.signal(ignored);
    }
    assert_eq!(run(&world.device, &["renew"]).0, Some(0));
    watch.until("a new SVID", |line| line.contains("new SVID "));
    watch.signal("TERM");
    assert_eq!(watch.end().signal(), Some(15));
}
