//! The real agent as a process of its own, with a directory for its state, its socket and its
//! configuration.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::directory::directory;
use super::log::Log;

/// Long enough for a machine with other things to do; nothing waits for it that does not fail in
/// the end.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The program.
pub(crate) const AGENT: &str = env!("CARGO_BIN_EXE_miaf-agent");

/// Variables that direct an agent to other servers, or change what it trusts.
const FOREIGN: &[&str] = &[
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "CREDENTIALS_DIRECTORY",
];

/// A device: its directory stays while its agent comes and goes.
pub(crate) struct Device {
    process: Option<Child>,
    log: Log, // before its directory: it is read when it is dropped
    directory: TempDir,
    environment: Vec<(String, String)>,
    passed: Vec<(String, UnixListener)>,
    under: Vec<String>,
}

impl Device {
    /// A device with this configuration. `{dir}` in it stands for the device's directory. The agent
    /// is not started.
    pub(crate) fn new(config: &str) -> Self {
        let directory = directory();
        let log = Log::new("the agent", directory.path().join("agent.log"));
        let (environment, passed, under) = (Vec::new(), Vec::new(), Vec::new());
        let device = Self { process: None, log, directory, environment, passed, under };
        device.configure(config);
        device
    }

    /// Writes the configuration file.
    pub(crate) fn configure(&self, config: &str) {
        let config = config.replace("{dir}", self.dir().to_str().expect("a path in UTF-8"));
        fs::write(self.path("config.toml"), config).expect("the configuration is written");
    }

    /// Sets an environment variable for the agents started from now on.
    pub(crate) fn environment(&mut self, name: &str, value: &str) {
        self.environment.push((name.into(), value.into()));
    }

    /// Listens on a socket in the device's directory, and passes it to the agents started from now
    /// on, as systemd would.
    pub(crate) fn pass_socket(&mut self, name: &str, path: &str) {
        assert!(self.passed.len() < 2, "more than stdin and stdout can carry");
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory for the socket");
        self.passed.push((name.into(), UnixListener::bind(path).expect("a listening socket")));
    }

    /// Agents started from now on have a network of their own, and nothing in it.
    pub(crate) fn go_offline(&mut self) {
        self.in_network_of_its_own(":");
    }

    /// Agents started from now on have a network of their own, in which these commands of the shell
    /// were run. (As a user that is root there only.)
    pub(crate) fn in_network_of_its_own(&mut self, commands: &str) {
        // Root needs no users of its own for that, and cannot have them everywhere (not below a
        // chroot, say).
        let is_root = fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
        let unshare: &[&str] =
            if is_root { &["unshare", "--net"] } else { &["unshare", "--user", "--map-root-user", "--net"] };
        let shell = format!("{commands} && exec \"$0\" \"$@\"");
        self.under(&[unshare, &["sh", "-c", &shell]].concat());
    }

    /// Agents started from now on are started by this program, which is to become what its last
    /// arguments say.
    pub(crate) fn under(&mut self, program: &[&str]) {
        self.under = program.iter().map(|&word| word.to_owned()).collect();
    }

    pub(crate) fn dir(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// A published file of the current generation.
    pub(crate) fn published(&self, name: &str) -> String {
        let path = self.path("state/svid/device/current").join(name);
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("{} cannot be read: {e}", path.display()))
    }

    /// Starts the agent and waits until its socket responds.
    pub(crate) fn start(&mut self) {
        self.spawn();
        self.wait_until("the socket responds", |device| device.get("/healthz").is_some());
    }

    /// Starts the agent.
    pub(crate) fn spawn(&mut self) {
        assert!(self.process.is_none(), "one agent at a time");
        let mut command = self.daemon();
        let process = command.stderr(self.log.to_append()).spawn();
        self.process = Some(process.expect("the agent starts"));
    }

    /// Runs a command of the agent's to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the command runs")
    }

    /// A command of the agent's, not started yet.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        // As from a terminal: a shell that runs the tests in the background ignores SIGINT, and
        // programs inherit that.
        let mut command = Command::new("env");
        command.args(["--default-signal", AGENT]);
        self.complete(&mut command, arguments);
        command
    }

    fn daemon(&self) -> Command {
        if self.passed.is_empty() {
            let mut words = self.under.iter().map(String::as_str).chain([AGENT]);
            let mut command = Command::new(words.next().expect("a program"));
            command.args(words);
            self.complete(&mut command, &["run"]).stdin(Stdio::null()).stdout(Stdio::null());
            return command;
        }
        // The sockets travel as stdin and stdout to a shell, which puts them where the agent
        // expects them.
        let mut command = Command::new("sh");
        command.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\" 3<&0 4<&1 </dev/null >/dev/null", AGENT]);
        self.complete(&mut command, &["run"]);
        let names: Vec<&str> = self.passed.iter().map(|(name, _)| name.as_str()).collect();
        command.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        let mut sockets =
            self.passed.iter().map(|(_, socket)| OwnedFd::from(socket.try_clone().expect("the same socket")));
        command.stdin(sockets.next().map_or_else(Stdio::null, Stdio::from));
        command.stdout(sockets.next().map_or_else(Stdio::null, Stdio::from));
        command
    }

    /// Has what starts the agent start it as this device's, with these arguments.
    pub(crate) fn complete<'c>(&self, command: &'c mut Command, arguments: &[&str]) -> &'c mut Command {
        command.arg("--config").arg(self.path("config.toml")).args(arguments).current_dir("/");
        // What the machine of the tests has set is not the device's.
        for name in FOREIGN {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().expect("a running agent").id()
    }

    pub(crate) fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// How the agent ended, if it has.
    pub(crate) fn has_ended(&mut self) -> Option<ExitStatus> {
        let status = self.process.as_mut().expect("an agent").try_wait().expect("its exit status");
        if status.is_some() {
            self.process = None;
        }
        status
    }

    /// Sends a signal by name.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("sh").args(["-c", &format!("kill -s {name} {}", self.pid())]).status();
        assert!(sent.expect("sh").success());
    }

    /// As a power cut would.
    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().expect("a running agent");
        process.kill().expect("SIGKILL");
        process.wait().expect("it is dead");
    }

    /// As systemd would.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait_for_exit()
    }

    /// Waits for the agent to end by itself.
    pub(crate) fn wait_for_exit(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let process = self.process.as_mut().expect("a running agent");
            if let Some(status) = process.try_wait().expect("its exit status") {
                self.process = None;
                return status;
            }
            pause();
        }
        panic!("the agent did not end"); // and is killed with the device
    }

    /// `GET` on the socket: status and body. `None`: no response.
    pub(crate) fn get(&self, path: &str) -> Option<(u16, String)> {
        self.request(&format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"))
    }

    /// Any request, raw.
    pub(crate) fn request(&self, request: &str) -> Option<(u16, String)> {
        self.request_at("run/agent.sock", request)
    }

    /// The same, on another of its sockets.
    pub(crate) fn request_at(&self, socket: &str, request: &str) -> Option<(u16, String)> {
        let mut stream = UnixStream::connect(self.path(socket)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.write_all(request.as_bytes()).ok()?;
        let mut response = String::new();
        stream.read_to_string(&mut response).ok()?;
        let status = response.split(' ').nth(1)?.parse().ok()?;
        Some((status, response.split_once("\r\n\r\n")?.1.to_owned()))
    }

    /// The status as the device's one identity sees it: see [`of_default_identity`].
    pub(crate) fn status(&self) -> Value {
        of_default_identity(&self.status_document())
    }

    /// `GET /v1/status`.
    pub(crate) fn status_document(&self) -> Value {
        let (status, body) = self.get("/v1/status").expect("the agent responds");
        assert_eq!(status, 200);
        serde_json::from_str(&body).expect("status is JSON")
    }

    /// Waits for a state and returns the status that shows it.
    pub(crate) fn wait_for(&self, state: &str) -> Value {
        self.wait_for_status(&format!("state {state}"), |status| status["state"] == state)
    }

    /// Waits until the last error says this somewhere.
    pub(crate) fn wait_for_error(&self, says: &str) -> Value {
        self.wait_for_status(&format!("an error that says {says:?}"), |status| {
            status["lastError"].to_string().contains(says)
        })
    }

    /// Waits for another certificate than the one with this serial number.
    pub(crate) fn wait_for_another_svid(&self, serial: &Value) -> Value {
        self.wait_for_status("another SVID", |status| {
            status["svid"]["serial"].is_string() && status["svid"]["serial"] != *serial
        })
    }

    pub(crate) fn wait_for_status(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        self.wait_until_with(what, &mut last, |device, last| {
            *last = device.status();
            holds(last)
        });
        last
    }

    pub(crate) fn wait_until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        self.wait_until_with(what, &mut Value::Null, |device, _| holds(device));
    }

    fn wait_until_with(
        &self,
        what: &str,
        last: &mut Value,
        mut holds: impl FnMut(&Self, &mut Value) -> bool,
    ) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self, last) {
            if Instant::now() >= deadline {
                panic!("timed out waiting for {what}; last status: {last:#}");
            }
            pause();
        }
    }

    pub(crate) fn log(&self) -> String {
        self.log.text()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// A status document as the default identity sees it: its members, and those that it shares. Its
/// error is its own, or the shared one where only that needs a correction, or where it has none.
pub(crate) fn of_default_identity(document: &Value) -> Value {
    let mut view = document.clone();
    let members = view.as_object_mut().expect("a status");
    let identities = members.remove("identities").expect("identities");
    let mut identity = identities[0].as_object().expect("at least one identity").clone();
    let own = identity.remove("lastError").expect("an error, or none");
    let shared = &members["lastError"];
    let only_shared_blocks = shared["permanent"] == true && own["permanent"] != true;
    if !own.is_null() && !only_shared_blocks {
        members["lastError"] = own;
    }
    members.extend(identity);
    view
}

/// An event of `/v1/watch` likewise: `svid` is that of the default identity.
pub(crate) fn event_of_default_identity(event: &Value) -> Value {
    let status = of_default_identity(&event["status"]);
    let svids = event["svids"].as_array().expect("SVIDs");
    let svid = svids.iter().find(|svid| svid["identity"] == status["name"]).cloned();
    serde_json::json!({ "status": status, "svid": svid, "bundle": event["bundle"] })
}

/// Sleeps for the interval of polls of something that changes by itself.
pub(crate) fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}
