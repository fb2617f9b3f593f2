//! At every call by which the agent makes something durable or visible, one after the other, the
//! file system fails it or it is killed. The list of these calls is what strace sees in a run
//! without faults. In the long form every call fails with every error that makes sense for it, and
//! kills come under every setting of key rotation.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use development_mis::Endpoint;
use serde_json::Value;

use crate::support::agent::{Device, PATIENCE, pause};
use crate::support::reader::Published;
use crate::support::strace::{self, Call, Strace, What, wait_until_stopped};
use crate::world::{self, World};

/// Devices at work at the same time. They wait most of the time: between two SVIDs the agent leaves
/// the MIS five seconds.
const DEVICES: usize = 20;

/// Groups that every Debian has, so that files are given to groups.
const GROUPS: &str = "[files]\ngroup = \"users\"\nkey_group = \"games\"\n";

/// What a device does while a call of it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Story {
    /// From the start of the process, with nothing, to the first identity published.
    Enroll,
    /// From the admin command to the new identity published, and the one before the last removed.
    Renew,
    /// From the start of the process, with an identity, to that identity served and found
    /// published.
    Start,
}

const STORIES: [Story; 3] = [Story::Enroll, Story::Renew, Story::Start];

/// How keys are to be renewed, on both sides.
#[derive(Clone, Copy, Debug)]
struct Setting {
    rotate: bool,
    permitted: bool,
}

const USUAL: Setting = Setting { rotate: true, permitted: true };

/// The n-th call of a story, and what happens there.
#[derive(Clone, Debug)]
struct Case {
    story: Story,
    nth: usize,
    what: What,
}

/// The calls of a story in sequence, their paths relative to the device's directory and without
/// numbers.
type List = Vec<Call>;

#[test]
#[ignore = "needs root: strace traces an undumpable agent"]
fn file_system_calls_can_fail_one_by_one() {
    let lists = lists(USUAL);
    let mut cases = Vec::new();
    for (story, list) in STORIES.into_iter().zip(&lists) {
        for (nth, call) in list.iter().enumerate() {
            let errors = errors(call);
            let chosen = if crate::is_long() { errors } else { &errors[nth % errors.len()..][..1] };
            for error in chosen {
                // In short form, each kind of call once in a story, and once or for a while in
                // turn.
                let is_first = !list[..nth].contains(call);
                let whats = [What::FailsOnce(error), What::Fails(error)];
                let whats = match (crate::is_long(), is_first) {
                    (true, true) => &whats[..],
                    (true, false) => &whats[..1],
                    (false, true) => &whats[nth % 2..][..1],
                    (false, false) => &[],
                };
                cases.extend(whats.iter().map(|&what| Case { story, nth, what }));
            }
        }
    }
    tell("fail", USUAL, &lists, cases);
}

#[test]
#[ignore = "needs root: strace traces an undumpable agent"]
fn file_system_calls_can_be_the_last_one_by_one() {
    let settings = [(true, true), (true, false), (false, true), (false, false)];
    for (rotate, permitted) in settings.into_iter().take(if crate::is_long() { 4 } else { 1 }) {
        let setting = Setting { rotate, permitted };
        let lists = lists(setting);
        let mut cases = Vec::new();
        for (story, list) in STORIES.into_iter().zip(&lists) {
            cases.extend((0..list.len()).map(|nth| Case { story, nth, what: What::Kills }));
        }
        tell("kill", setting, &lists, cases);
    }
}

/// A file system that journals hides the lack of a sync in most power cuts; the sequence of the
/// calls does not.
#[test]
#[ignore = "needs root: strace traces an undumpable agent"]
fn renamed_files_are_durable_before_the_next_step() {
    // Sockets are made anew at every start.
    let is_made_durable = |call: &Call| call.name.starts_with("rename") && call.path.starts_with("state");
    let mut renames = 0;
    for list in lists(USUAL) {
        for (nth, call) in list.iter().enumerate().filter(|(_, call)| is_made_durable(call)) {
            renames += 1;
            let (before, after) = (&list[..nth], &list[nth + 1..]);
            let is_sync = |one: &Call, of: &Path| one.name.ends_with("sync") && one.path == of;
            let is_link =
                before.last().is_some_and(|last| last.name.starts_with("symlink") && last.path == call.path);
            let is_synced = before.iter().any(|one| is_sync(one, &call.path));
            assert!(is_synced || is_link, "{call:?} was not synced: {before:#?}");
            // Also what is in it, where it is a directory.
            for (at, written) in before.iter().enumerate().filter(|(_, one)| one.name == "write") {
                let is_synced = before[at..].iter().any(|one| is_sync(one, &written.path));
                assert!(is_synced, "{written:?} was not synced before {call:?}: {before:#?}");
            }
            let directory = call.path.parent().unwrap();
            let next = after.iter().find(|one| !one.reads);
            assert!(
                next.is_some_and(|next| is_sync(next, directory)),
                "{directory:?} is to be synced next: {after:#?}"
            );
        }
    }
    assert!(renames >= 10, "{renames} files and directories were renamed");
}

#[test]
#[ignore = "needs root: mounts"]
fn full_disk_loses_nothing_and_is_recovered_from() {
    let mut subject = Subject::new(USUAL);
    subject.start_on_a_disk_of_its_own("mkdir -p $STATE && mount -t tmpfs -o size=256k none $STATE");
    subject.settle(Story::Enroll);
    subject.on_its_disk("! cat /dev/zero > $STATE/filler");
    subject.cannot_renew_while("No space left on device");
    subject.on_its_disk("rm $STATE/filler");
    subject.settle(Story::Renew);
    subject.renew();
    subject.nothing_is_left_over();
}

#[test]
#[ignore = "needs root: mounts"]
fn read_only_disk_is_served_from_and_recovered_from() {
    let mut subject = Subject::new(USUAL);
    subject.prepare(Story::Renew);
    subject.stop();
    // The kernel makes no file system read-only in which a file is open for writing, unless that
    // has failed: so here it is read-only when the agent is started.
    subject.start_on_a_disk_of_its_own(
        "cp -a $STATE $STATE.copy && mount -t tmpfs -o mode=711 none $STATE && cp -a $STATE.copy/. $STATE &&
         mount -o remount,ro $STATE",
    );
    subject.settle(Story::Start);
    subject.cannot_renew_while("Read-only file system");
    subject.on_its_disk("mount -o remount,rw $STATE");
    subject.settle(Story::Renew);
    subject.renew();
    subject.nothing_is_left_over();
}

#[test]
#[ignore = "needs root: changes the limits of an undumpable agent"]
fn agent_recovers_from_a_lack_of_file_descriptors() {
    let mut subject = Subject::new(USUAL);
    subject.prepare(Story::Renew);
    let pid = subject.device().pid();
    let limit = |files: &str| {
        let limited =
            Command::new("prlimit").args(["--pid", &pid.to_string(), &format!("--nofile={files}")]).status();
        assert!(limited.expect("prlimit").success());
    };
    limit("3:"); // those that are open stay
    // No connection is accepted, a waiting one is not dropped, and work fails: the bundle is
    // refreshed every second.
    let socket = subject.device().path("run/agent.sock");
    let mut caller = UnixStream::connect(socket).unwrap();
    caller.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    subject.device().wait_until("it says so", |device| device.log().contains("Too many open files"));
    std::thread::sleep(Duration::from_secs(3)); // for a log to be filled, time has to pass
    let said = subject.device().log().matches("Too many open files").count();
    assert!(said <= 5, "{}", subject.device().log());
    limit("1024:");
    let mut response = String::new();
    caller.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    subject.settle(Story::Start);
    subject.renew();
    subject.nothing_is_left_over();
}

/// Has all of it happen, and says how much it was.
fn tell(how: &str, setting: Setting, lists: &[List; 3], cases: Vec<Case>) {
    let begun = Instant::now();
    let next = AtomicUsize::new(0);
    let (hit, failed) = (Mutex::new(BTreeSet::new()), Mutex::new(Vec::new()));
    let of = |story| &lists[STORIES.iter().position(|one| *one == story).unwrap()];
    std::thread::scope(|scope| {
        for _ in 0..DEVICES.min(cases.len()) {
            scope.spawn(|| {
                let mut subject = Subject::new(setting);
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (list, call) = (of(case.story), &of(case.story)[case.nth]);
                    // One that fails is not to hide the others.
                    let undergone = catch_unwind(AssertUnwindSafe(|| subject.undergo(case, list)));
                    if undergone.is_err() {
                        failed.lock().unwrap().push((case, call));
                        eprintln!("--- that was {case:?}: {call:?}");
                        subject = Subject::new(setting);
                    }
                    hit.lock().unwrap().insert(call);
                }
                if subject.device().is_running() {
                    subject.renew();
                }
            });
        }
    });
    let all: BTreeSet<&Call> = lists.iter().flatten().collect();
    let (hit, failed) = (hit.into_inner().unwrap(), failed.into_inner().unwrap());
    let (calls, kinds, count) = (lists.iter().map(Vec::len).sum::<usize>(), all.len(), cases.len());
    println!(
        "{how}: {count} faults at {calls} calls ({kinds} different ones) of three stories, as many recoveries, in {} s: {setting:?}",
        begun.elapsed().as_secs()
    );
    assert!(failed.is_empty(), "{} cases failed: {failed:#?}", failed.len());
    let missed: Vec<_> = all.into_iter().filter(|call| !hit.contains(call)).collect();
    assert!(missed.is_empty(), "never hit: {missed:#?}");
}

/// The errors that make sense for a call.
pub(crate) fn errors(call: &Call) -> &'static [&'static str] {
    match call.name.as_str() {
        "openat" if call.reads => &["EIO", "EMFILE"],
        "openat" => &["EMFILE", "ENOSPC", "EROFS", "EIO"],
        "write" => &["ENOSPC", "EIO"],
        name if name.starts_with("unlink") || name.starts_with("fch") || name.starts_with("ch") => {
            &["EROFS", "EIO"]
        }
        _ => &["ENOSPC", "EIO", "EROFS"],
    }
}

pub(crate) fn in_words(error: &str) -> &'static str {
    match error {
        "EIO" => "Input/output error",
        "EMFILE" => "Too many open files",
        "ENOSPC" => "No space left on device",
        "EROFS" => "Read-only file system",
        _ => panic!("an error without words: {error}"),
    }
}

fn lists(setting: Setting) -> [List; 3] {
    std::thread::scope(|scope| {
        let listed = STORIES.map(|story| scope.spawn(move || list(story, setting)));
        listed.map(|list| list.join().unwrap())
    })
}

/// The calls of a story that goes well.
fn list(story: Story, setting: Setting) -> List {
    let mut subject = Subject::new(setting);
    subject.prepare(story);
    if story == Story::Renew {
        // In a process that knows of no refusal yet.
        subject.stop();
        subject.prepare(story);
    }
    let numbers = subject.numbers();
    let strace = Strace::watch(subject.device().pid(), &subject.log);
    subject.begin(story);
    subject.wait_for_the_end(story);
    let log = strace.detach();
    let calls = strace::calls(&log).into_iter().filter_map(|call| {
        Some(Call { path: numbers.without(call.path.strip_prefix(subject.device().dir()).ok()?)?, ..call })
    });
    calls.collect()
}

/// A device that is put through one case after the other. The MIS and the TPM stay the same.
struct Subject {
    world: World,
    log: PathBuf,
    /// What was current and published when the story began.
    current: Option<Published>,
    /// What the log of the agent said before.
    said: usize,
    /// How often it may have enrolled by the end.
    enrollments: usize,
}

impl Subject {
    fn new(setting: Setting) -> Self {
        let world = World::with(|settings| {
            let policy = &mut settings.policy;
            (policy.enrollment_limit, policy.renewal_limit) = (None, None);
            policy.rotation_at_renewal = setting.permitted;
        });
        let config = world::config(&world.mis, &world.tpm, GROUPS);
        let config = config.replace("[key]", &format!("[key]\nrotate = {}", setting.rotate));
        world.device.configure(&config.replace("[socket]", "[socket]\ngroup = \"users\""));
        let log = world.device.path("strace.log");
        Self { world, log, current: None, said: 0, enrollments: 0 }
    }

    /// A path of the device's as its agent sees it, which may have file systems of its own.
    fn seen(&self, name: &str) -> PathBuf {
        let path = self.device().path(name);
        format!("/proc/{}/root{}", self.device().pid(), path.display()).into()
    }

    fn device(&self) -> &Device {
        &self.world.device
    }

    fn undergo(&mut self, case: &Case, list: &List) {
        self.prepare(case.story);
        let strace = self.bring_about(case, list);
        match case.what {
            What::Kills => {
                let device = &mut self.world.device;
                wait("the agent is dead", || device.has_ended().is_some());
                drop(strace);
                // A response that was on its way is requested again.
                let holds_one = self.device().path("state/private/identities/device/identity.json").exists();
                self.enrollments = self.issued_at_enrollment() + usize::from(!holds_one);
                self.restart();
                self.wait_for_adoption();
            }
            _ => self.live_through(case, &list[case.nth], strace),
        }
        // The admin command has gone with the process that accepted it.
        let is_killed = matches!(case.what, What::Kills);
        let command_is_gone = case.story == Story::Renew && is_killed;
        self.settle(if command_is_gone { Story::Start } else { case.story });
        if let What::FailsOnce(error) | What::Fails(error) = case.what {
            assert!(self.says(error, &list[case.nth]), "it never said {error}:\n{}", self.device().log());
        }
        // It renews once more: as the next case, which saves time, or now. What could not be
        // cleared away goes with that.
        let Call { name, path, .. } = &list[case.nth];
        // An old generation is removed through the directory that it is in.
        let is_of_old = path.starts_with("state/svid/device/OLD")
            || (name == "unlinkat" && path == Path::new("state/svid/device"));
        if command_is_gone || is_of_old || (case.story != Story::Renew && !is_killed) {
            self.renew();
        }
        self.nothing_is_left_over();
        if is_killed {
            self.stop(); // a new process need not wait before its first renewal
        }
    }

    /// Everything is as it is before the story.
    fn prepare(&mut self, story: Story) {
        if story != Story::Renew {
            self.stop();
        }
        if story == Story::Enroll {
            self.forget();
        } else if self.current.is_none() {
            self.stop();
            self.forget();
            self.restart();
            self.enrollments = self.issued_at_enrollment() + 1;
            self.settle(Story::Enroll);
            self.renew(); // from then on, each publication clears away the one before the last
        }
        match story {
            Story::Renew if self.device().is_running() => {}
            Story::Renew => {
                self.restart();
                self.settle(Story::Start);
            }
            Story::Enroll | Story::Start => {
                self.stop();
                self.world.device.under(&["sh", "-c", "kill -s STOP $$; exec \"$0\" \"$@\""]);
                self.world.device.spawn();
                wait_until_stopped(self.device().pid());
            }
        }
        self.said = self.device().log().len();
        self.enrollments = self.issued_at_enrollment() + usize::from(story == Story::Enroll);
    }

    /// Starts the agent when these commands have made a file system of its own at `$STATE`. It is
    /// gone with the agent.
    fn start_on_a_disk_of_its_own(&mut self, commands: &str) {
        let state = self.device().path("state");
        self.world.device.environment("STATE", state.to_str().unwrap());
        let commands = format!("{commands} && exec \"$0\" \"$@\"");
        self.world.device.under(&["unshare", "--mount", "sh", "-c", &commands]);
        self.world.device.start();
        self.enrollments = self.issued_at_enrollment() + usize::from(self.current.is_none());
    }

    /// Runs a command where the agent's file systems are.
    fn on_its_disk(&self, command: &str) {
        let mut nsenter = Command::new("nsenter");
        // Its root as well: the test may run below a chroot.
        nsenter.args([
            "--mount",
            "--root",
            "--target",
            &self.device().pid().to_string(),
            "sh",
            "-c",
            command,
        ]);
        let output = nsenter.env("STATE", self.device().path("state")).output();
        assert!(output.as_ref().is_ok_and(|output| output.status.success()), "{command}: {output:?}");
    }

    /// A renewal by command fails, the status says why, and the current identity is served.
    fn cannot_renew_while(&self, why: &str) {
        assert_eq!(self.request_renewal().expect("a response").0, 202);
        let status = self.device().wait_for_error(why);
        let detail = status["lastError"]["detail"].as_str().unwrap();
        assert!(detail.contains(self.device().path("state").to_str().unwrap()), "{detail}");
        assert_eq!(status["svid"]["serial"], self.current.as_ref().unwrap().serial());
        assert_eq!(self.device().get("/readyz").unwrap().0, 200);
        self.is_held_and_served();
    }

    fn stop(&mut self) {
        if self.device().is_running() {
            assert!(self.world.device.stop().success());
        }
    }

    /// Makes it a device that never had an identity. The MIS knows it all the same.
    fn forget(&mut self) {
        for directory in ["state", "run"] {
            let _ = fs::remove_dir_all(self.device().path(directory));
        }
        self.current = None;
    }

    fn restart(&mut self) {
        self.world.device.under(&[]);
        self.world.device.start();
    }

    fn begin(&self, story: Story) {
        match story {
            Story::Renew => drop(self.request_renewal()), // it may be killed before its response
            _ => self.device().signal("CONT"),
        }
    }

    fn request_renewal(&self) -> Option<(u16, String)> {
        let request = "POST /v1/identities/device/renew HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        self.device().request_at("run/admin.sock", request)
    }

    /// Renews once more.
    fn renew(&mut self) {
        assert_eq!(self.request_renewal().expect("a response").0, 202);
        self.settle(Story::Renew);
    }

    /// Begins the story, with a strace attached that has it happen at the n-th call and nowhere
    /// before.
    fn bring_about(&self, case: &Case, list: &List) -> Strace {
        let (pid, numbers) = (self.device().pid(), self.numbers());
        let at = |nth: usize| {
            let call: &Call = &list[nth];
            Call { path: self.device().path(numbers.with(&call.path).to_str().unwrap()), ..call.clone() }
        };
        // strace counts in each thread for itself. So it never counts beyond one: where the same
        // call comes more than once before, the process is stopped at another one in between first.
        let stops = stops_before(list, case.nth);
        let goes_on = |nth: usize| match nth {
            0 => self.begin(case.story),
            _ => self.device().signal("CONT"),
        };
        for (nth, &stop) in stops.iter().enumerate() {
            let strace = Strace::inject(pid, &self.log, &at(stop), What::Stops);
            goes_on(nth);
            self.device().wait_until(&format!("a stop at {:?}", at(stop)), |_| strace.has_hit(What::Stops));
            strace.detach();
            wait_until_stopped(pid);
        }
        let strace = Strace::inject(pid, &self.log, &at(case.nth), case.what);
        goes_on(stops.len());
        self.device().wait_until("the fault happens", |_| strace.has_hit(case.what));
        strace
    }

    /// Sees how the agent does while a call fails, and lets the fault go.
    fn live_through(&mut self, case: &Case, call: &Call, strace: Strace) {
        if let What::Fails(error) = case.what {
            self.device().wait_until(&format!("the agent says {error}"), |_| self.says(error, call));
            if case.story != Story::Enroll && self.device().get("/healthz").is_some() {
                self.is_held_and_served();
            }
        }
        drop(strace);
        // A socket that cannot be bound is the one thing that the agent cannot begin without.
        let is_socket_s = case.story != Story::Renew && !call.path.starts_with("state");
        let device = &mut self.world.device;
        let mut ended = None;
        wait("the agent responds or has ended", || {
            ended = if is_socket_s { device.has_ended() } else { None };
            ended.is_some() || device.get("/healthz").is_some()
        });
        if let Some(status) = ended {
            assert_eq!(status.code(), Some(1), "it ends as one that is to be started again");
            self.restart();
        }
    }

    /// While the fault lasts, the identity from before is current and served, or its successor.
    fn is_held_and_served(&self) {
        let Some(current) = &self.current else { return };
        let (status, published) = (self.device().status(), self.published());
        // A state that cannot be read is not guessed at: then there are the files.
        let is_unreadable = status["lastError"]["code"] == "state" && status["state"] == "blocked";
        assert!(status["svid"].is_object() || is_unreadable, "{status:#}");
        let is_as_it_was = published.svid == current.svid && published.key == current.key;
        // Files and status follow each other within moments: of a successor it is enough here that
        // it belongs together.
        assert!(is_as_it_was || published.serial() != current.serial());
    }

    /// Waits until the story has come to its end, and checks the result.
    fn settle(&mut self, story: Story) {
        self.wait_for_the_end(story);
        let status = self.device().status();
        assert_eq!(self.world.mis.devices().len(), 1, "one device, one identity");
        assert_eq!(status["spiffeId"], Value::from(self.world.mis.devices()[0].ldi.clone()));
        assert!(self.issued_at_enrollment() <= self.enrollments, "it enrolled once more than it had to");
        let published = self.published();
        assert_eq!(status["svid"]["serial"], published.serial());
        self.current = Some(published);
    }

    fn wait_for_the_end(&self, story: Story) {
        let current = self.current.as_ref().map(Published::serial);
        self.device().wait_until("the socket responds", |device| device.get("/healthz").is_some());
        let is_new =
            |status: &Value| story != Story::Renew || status["svid"]["serial"].as_str() != current.as_deref();
        self.device().wait_for_status("an identity that is well", |status| {
            status["state"] == "active" && status["lastError"].is_null() && is_new(status)
        });
        // The agent says so itself only when it has checked: after a start too, when it may have
        // been there all the time.
        self.device().wait_until("it is published", |device| {
            let served =
                device.get("/v1/svid").map_or(Value::Null, |(_, svid)| serde_json::from_str(&svid).unwrap());
            let said = fs::read(self.seen("state/svid/device/current/identity.json")).unwrap_or_default();
            let said: Value = serde_json::from_slice(&said).unwrap_or_default();
            served["generation"].is_u64() && said["serial"] == device.status()["svid"]["serial"]
        });
    }

    /// Waits until a chain that was issued before the kill, and stored, is adopted. Until then the
    /// agent is active with the identity before it, and on a slow machine that is to be seen.
    fn wait_for_adoption(&self) {
        self.device().wait_until("what was issued is adopted", |device| {
            if device.path("state/private/identities/device/issued.json").exists() {
                return false;
            }
            let record =
                fs::read(device.path("state/private/identities/device/identity.json")).unwrap_or_default();
            let record: Value = serde_json::from_slice(&record).unwrap_or_default();
            let chain = &record["record"]["chain"];
            let served =
                device.get("/v1/svid").map_or(Value::Null, |(_, svid)| serde_json::from_str(&svid).unwrap());
            chain.is_null() || *chain == served["certificateChainPem"]
        });
    }

    /// What is published, which belongs together.
    fn published(&self) -> Published {
        let published = Published::read(&self.seen("state/svid/device")).expect("it is published");
        published.belongs_together().unwrap_or_else(|why| panic!("{why}"));
        published
    }

    fn nothing_is_left_over(&self) {
        let names = |directory: &str| {
            let all = fs::read_dir(self.seen(directory)).unwrap();
            all.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
        };
        self.device().wait_until("nothing half-written is there", |_| {
            let (private, svid) = (names("state/private"), names("state/svid/device"));
            let is_whole = |name: &String| !name.contains(".new") && !name.contains(".unusable");
            svid.len() <= 3 && private.iter().chain(&svid).all(is_whole)
        });
    }

    fn issued_at_enrollment(&self) -> usize {
        self.world.seen(Endpoint::Enrollment).iter().filter(|entry| entry.issued).count()
    }

    fn says(&self, error: &str, call: &Call) -> bool {
        // What was published and cannot be read is published anew, and nothing is wrong.
        let is_published = call.reads && call.path.starts_with("state/svid/device/CURRENT");
        let (log, directory) = (self.device().log(), self.device().dir().to_str().unwrap());
        let said =
            log[self.said..].lines().any(|line| line.contains(in_words(error)) && line.contains(directory));
        said || is_published
    }

    fn numbers(&self) -> Numbers {
        Numbers::read(&self.device().path("state/svid/device"))
    }
}

/// Calls at which to stop before the n-th, so that from the last of them on its like does not come
/// before it.
pub(crate) fn stops_before(list: &[Call], nth: usize) -> Vec<usize> {
    let Some(before) = list[..nth].iter().rposition(|call| *call == list[nth]) else { return Vec::new() };
    // A call that comes for the first time needs no stop of its own.
    let is_first = |at: &usize| !list[..*at].contains(&list[*at]);
    match (before..nth).rev().find(is_first) {
        Some(stop) => vec![stop],
        None => [stops_before(list, before), vec![before]].concat(),
    }
}

/// The generations of published files: the one that is current, the one that is next, and the one
/// that goes then.
struct Numbers {
    current: Option<u64>,
    next: u64,
    old: Option<u64>,
}

impl Numbers {
    fn read(directory: &Path) -> Self {
        let names = fs::read_dir(directory).into_iter().flatten();
        let all = names.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        let all: BTreeSet<u64> = all.collect();
        let current =
            fs::read_link(directory.join("current")).ok().and_then(|link| link.to_str()?.parse().ok());
        let next = all.last().map_or(1, |newest| newest + 1);
        Self { current, next, old: all.first().copied().filter(|old| Some(*old) != current) }
    }

    /// `None`: no path of the agent's.
    fn without(&self, path: &Path) -> Option<PathBuf> {
        let text = path.to_str()?;
        if !text.is_empty() && !text.starts_with("state") && !text.starts_with("run") {
            return None;
        }
        let named = |part: &str| {
            let (before, number, after) =
                match part.strip_prefix('.').and_then(|part| part.strip_suffix(".new")) {
                    Some(number) => (".", number, ".new"),
                    None => ("", part, ""),
                };
            let number: Option<u64> = number.parse().ok();
            let name = match number {
                Some(number) if number == self.next => "NEXT",
                Some(number) if Some(number) == self.current => "CURRENT",
                Some(number) if Some(number) == self.old => "OLD",
                _ => return part.to_owned(),
            };
            format!("{before}{name}{after}")
        };
        Some(text.split('/').map(named).collect::<Vec<_>>().join("/").into())
    }

    fn with(&self, path: &Path) -> PathBuf {
        let number = |number: Option<u64>| number.map(|number| number.to_string()).unwrap_or_default();
        let text = path.to_str().unwrap().replace("NEXT", &self.next.to_string());
        text.replace("CURRENT", &number(self.current)).replace("OLD", &number(self.old)).into()
    }
}

pub(crate) fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "timed out waiting until {what}");
        pause();
    }
}
