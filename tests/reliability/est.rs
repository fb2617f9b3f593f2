//! An identity enrolls over EST by a token, and is killed, or fails at a call on its files, or loses
//! the response. In the end it has the identity that the one token was for: the token went out with
//! one key and one request, it is used up, and nothing of it is left.
//!
//! In the short form each kind of call fails once, each call is the last one once, and 16 kills come
//! at random moments; `SEED` repeats their draws.

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use development_mis::{Endpoint, Fault, Token};
use serde_json::Value;

use crate::faults::{errors, in_words, stops_before, wait};
use crate::kills::{next_draw, seed_of_run};
use crate::support::reader::Published;
use crate::support::strace::{self, Call, Strace, What, wait_until_stopped};
use crate::world::World;

pub(crate) const NAME: &str = "wfm-client";
pub(crate) const CLIENT: &str = "spiffe://factory.example/margo/wfm/wfm-1/client/line-7";

/// Devices at work at the same time.
pub(crate) const DEVICES: usize = 8;

/// A device that enrolls over EST again and again, each time with nothing but a fresh token.
pub(crate) struct Subject {
    pub(crate) world: World,
    token: Option<Token>,
    /// Requests that the MIS had seen at `/simpleenroll` when the enrollment began.
    seen: usize,
    /// What the log of the agent said before.
    pub(crate) said: usize,
}

impl Subject {
    fn new() -> Self {
        Self::with("")
    }

    /// With these lines more at the end of the configuration.
    pub(crate) fn with(more: &str) -> Self {
        let world = World::with(|settings| {
            settings.policy.backdate = Duration::ZERO; // and SVIDs of a day: nothing is due by itself
            settings.policy.est.attempts = None;
        });
        let World { mis, tpm, .. } = &world;
        world.device.configure(&format!(
            "state_dir = \"{{dir}}/state\"\n\
             [mis]\nest_url = \"{}\"\nbundle_file = \"{}\"\ntrust_domain = \"factory.example\"\n\
             [mis.trust]\nca_file = \"{}\"\n\
             [key]\ntcti = \"{}\"\n\
             [retry]\nbase = \"100ms\"\ncap = \"500ms\"\n\
             [bundle]\nrefresh = \"1s\"\n\
             [socket]\npath = \"{{dir}}/run/agent.sock\"\n\
             [[identity]]\nname = \"{NAME}\"\nenroll = \"est\"\n\
             [identity.est]\ntoken = \"file:{{dir}}/token\"\nremove_token = true\n{more}",
            mis.est_url(),
            mis.bundle_file().unwrap().display(),
            mis.ca_file().display(),
            tpm.tcti(),
        ));
        Self { world, token: None, seen: 0, said: 0 }
    }

    pub(crate) fn log_file(&self) -> PathBuf {
        self.world.device.path("strace.log")
    }

    /// A device that never had an identity, and a fresh token for it.
    pub(crate) fn begins_with_a_token(&mut self) {
        if self.world.device.is_running() {
            assert!(self.world.device.stop().success());
        }
        for directory in ["state", "run"] {
            let _ = fs::remove_dir_all(self.world.device.path(directory));
        }
        let token = self.world.mis.est().token(CLIENT);
        token.write(&self.world.device.path("token")).unwrap();
        self.token = Some(token);
        self.seen = self.world.seen(Endpoint::EstEnroll).len();
        self.said = self.world.device.log().len();
    }

    /// The process is there, and stopped before it begins.
    fn is_about_to_start(&mut self) {
        self.world.device.under(&["sh", "-c", "kill -s STOP $$; exec \"$0\" \"$@\""]);
        self.world.device.spawn();
        wait_until_stopped(self.world.device.pid());
    }

    pub(crate) fn starts(&mut self) {
        self.world.device.under(&[]);
        self.world.device.spawn();
    }

    pub(crate) fn status(&self) -> Value {
        let document = self.world.device.status_document();
        document["identities"].as_array().and_then(|all| all.first().cloned()).unwrap_or_default()
    }

    pub(crate) fn becomes_active(&self) {
        self.world.device.wait_until("the socket responds", |device| device.get("/healthz").is_some());
        self.world.device.wait_until("an identity that is well", |_| {
            let status = self.status();
            status["state"] == "active" && status["lastError"].is_null()
        });
    }

    /// The calls of an enrollment that goes well, their paths relative to the device's directory.
    fn list(&mut self) -> Vec<Call> {
        self.begins_with_a_token();
        self.is_about_to_start();
        let strace = Strace::watch(self.world.device.pid(), &self.log_file());
        self.world.device.signal("CONT");
        self.ends_well(1);
        self.own_calls(&strace.detach())
    }

    /// The calls in the output of strace, their paths relative to the device's directory.
    pub(crate) fn own_calls(&self, log: &str) -> Vec<Call> {
        let device = self.world.device.dir();
        let calls = strace::calls(log).into_iter().filter_map(|call| {
            let path = call.path.strip_prefix(device).ok()?;
            let is_own = ["state", "run", "token"].iter().any(|own| path.starts_with(own));
            is_own.then(|| Call { path: path.to_owned(), ..call.clone() })
        });
        calls.collect()
    }

    /// Has it happen at the n-th call, and nowhere before. `begin` sets off what makes these calls.
    pub(crate) fn brings_about(
        &self,
        list: &[Call],
        nth: usize,
        what: What,
        begin: impl FnOnce(&Self),
    ) -> Strace {
        let pid = self.world.device.pid();
        let at =
            |nth: usize| Call { path: self.world.device.dir().join(&list[nth].path), ..list[nth].clone() };
        let mut begin = Some(begin);
        let mut goes_on = || match begin.take() {
            Some(begin) => begin(self),
            None => self.world.device.signal("CONT"),
        };
        // strace counts in each thread for itself: what comes more than once is stopped at before.
        for stop in stops_before(list, nth) {
            let strace = Strace::inject(pid, &self.log_file(), &at(stop), What::Stops);
            goes_on();
            wait(&format!("a stop at {:?}", at(stop)), || strace.has_hit(What::Stops));
            strace.detach();
            wait_until_stopped(pid);
        }
        let strace = Strace::inject(pid, &self.log_file(), &at(nth), what);
        goes_on();
        wait(&format!("{what:?} at {:?}", at(nth)), || strace.has_hit(what));
        strace
    }

    fn undergoes(&mut self, list: &[Call], nth: usize, what: What) {
        self.begins_with_a_token();
        self.is_about_to_start();
        let strace = self.brings_about(list, nth, what, |subject| subject.world.device.signal("CONT"));
        let mut requests = 1;
        match what {
            What::Kills => {
                wait("the agent is dead", || self.world.device.has_ended().is_some());
                drop(strace);
                self.world.tpm.flush();
                self.starts();
                // A response that was on its way is requested again.
                requests = 2;
            }
            What::FailsOnce(error) | What::Fails(error) => {
                let device = self.world.device.dir().to_str().unwrap().to_owned();
                if matches!(what, What::Fails(_)) {
                    wait(&format!("the agent says {error}"), || {
                        let log = self.world.device.log();
                        let said = |line: &str| line.contains(in_words(error)) && line.contains(&device);
                        log[self.said..].lines().any(said)
                    });
                }
                drop(strace);
                // A socket that cannot be bound, or a directory that cannot be made, ends the process.
                let mut ended = false;
                wait("the agent responds or has ended", || {
                    ended = self.world.device.has_ended().is_some();
                    ended || self.world.device.get("/healthz").is_some()
                });
                if ended {
                    self.world.tpm.flush();
                    self.starts();
                }
            }
            What::Stops => unreachable!("it goes on from there"),
        }
        self.ends_well(requests);
    }

    /// The identity is there, and the token is used up: it went out at most so often, always with the
    /// same request, and was never refused.
    pub(crate) fn ends_well(&self, most: usize) {
        self.becomes_active();
        let log = || self.world.device.log()[self.said..].to_owned();
        assert_eq!(self.status()["spiffeId"], CLIENT, "{}", log());
        let seen = self.world.seen(Endpoint::EstEnroll).split_off(self.seen);
        assert!((1..=most).contains(&seen.len()), "{seen:#?}\n{}", log());
        let keys: BTreeSet<_> = seen.iter().filter_map(|entry| entry.csr_spki_sha256.clone()).collect();
        assert_eq!(keys.len(), 1, "the key that the token is bound to is given up: {seen:#?}\n{}", log());
        let refused = seen.iter().find(|entry| entry.status.is_some_and(|status| status != 200));
        assert!(refused.is_none(), "{refused:#?}\n{}", log());
        assert!(self.world.mis.est().violations().is_empty());
        let published = || Published::read(&self.world.device.path(&format!("state/svid/{NAME}")));
        let serial = self.status()["svid"]["serial"].clone();
        wait("it is published", || published().is_some_and(|published| serial == published.serial()));
        published().expect("it is published").belongs_together().unwrap_or_else(|why| panic!("{why}"));
        wait("nothing of the token is left", || self.traces_of_the_token().is_empty());
        self.nothing_is_given_up();
    }

    /// No record, and so no key, was put out of use.
    pub(crate) fn nothing_is_given_up(&self) {
        let names = |directory: &Path| {
            let entries = fs::read_dir(directory).into_iter().flatten();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
        };
        let private = self.world.device.path("state/private");
        let all = [names(&private), names(&private.join("identities").join(NAME))].concat();
        let unusable = all.iter().find(|name| name.contains("unusable"));
        assert!(unusable.is_none(), "{all:?}\n{}", &self.world.device.log()[self.said..]);
    }

    /// The files of the device in which its token is, and its file.
    fn traces_of_the_token(&self) -> Vec<PathBuf> {
        fn files_below(directory: &Path, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok) {
                let path = entry.path();
                if path.is_dir() { files_below(&path, found) } else { found.push(path) }
            }
        }
        let mut files = Vec::new();
        files_below(self.world.device.dir(), &mut files);
        let secret = self.token.as_ref().unwrap().secret.as_bytes();
        let has_secret = |file: &PathBuf| {
            let content = fs::read(file).unwrap_or_default();
            content.windows(secret.len()).any(|part| part == secret)
        };
        files.retain(has_secret);
        files
    }
}

/// Has all of it happen, on several devices at a time.
fn tell(how: &str, cases: Vec<(usize, What)>, list: &[Call]) {
    let begun = Instant::now();
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..DEVICES.min(cases.len()) {
            scope.spawn(|| {
                let mut subject = Subject::new();
                while let Some((nth, what)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let undergone = catch_unwind(AssertUnwindSafe(|| subject.undergoes(list, *nth, *what)));
                    if undergone.is_err() {
                        failed.lock().unwrap().push((*what, &list[*nth]));
                        eprintln!("--- that was {what:?}: {:?}", list[*nth]);
                        subject = Subject::new();
                    }
                }
            });
        }
    });
    println!(
        "{how} over EST: {} faults at {} calls, in {} s",
        cases.len(),
        list.len(),
        begun.elapsed().as_secs()
    );
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} cases failed: {failed:#?}", failed.len());
}

#[test]
#[ignore = "needs root: strace traces an undumpable agent"]
fn file_system_calls_can_fail_while_a_token_enrolls() {
    let list = Subject::new().list();
    let mut cases = Vec::new();
    for (nth, call) in list.iter().enumerate() {
        let errors = errors(call);
        let is_first = !list[..nth].contains(call);
        if crate::is_long() {
            cases.extend(errors.iter().map(|error| (nth, What::FailsOnce(error))));
            cases.extend(errors.iter().filter(|_| is_first).map(|error| (nth, What::Fails(error))));
        } else if is_first {
            let error = errors[nth % errors.len()];
            cases.push((nth, if nth % 2 == 0 { What::FailsOnce(error) } else { What::Fails(error) }));
        }
    }
    tell("fail", cases, &list);
}

#[test]
#[ignore = "needs root: strace traces an undumpable agent"]
fn file_system_calls_can_be_the_last_while_a_token_enrolls() {
    let list = Subject::new().list();
    tell("kill", (0..list.len()).map(|nth| (nth, What::Kills)).collect(), &list);
}

#[test]
fn kills_while_a_token_enrolls() {
    let mut subject = Subject::new();
    let mut draws = seed_of_run();
    let begun = Instant::now();
    subject.begins_with_a_token();
    subject.starts();
    subject.ends_well(1);
    let usual = begun.elapsed();
    let kills = if crate::is_long() { 200 } else { 16 };
    for kill in 0..kills {
        subject.begins_with_a_token();
        // Each third response is lost as well.
        let is_lost = kill % 3 == 2;
        if is_lost {
            subject.world.mis.fault(Endpoint::EstEnroll, Fault::LoseAnswer);
        }
        subject.starts();
        std::thread::sleep(usual.mul_f64(1.2 * next_draw(&mut draws)));
        subject.world.kill();
        subject.starts();
        subject.ends_well(2 + usize::from(is_lost));
        // What is spent is not sent again by the next process.
        subject.world.kill();
        subject.starts();
        subject.ends_well(2 + usize::from(is_lost));
    }
    println!("killed {kills} times while a token enrolled (within {usual:?}), and as often after it");
}

#[test]
fn lost_responses_to_a_token_are_requested_again() {
    let mut subject = Subject::new();
    subject.begins_with_a_token();
    for fault in [Fault::LoseAnswer, Fault::CutBefore, Fault::LoseAnswer] {
        subject.world.mis.fault(Endpoint::EstEnroll, fault);
    }
    let begun = Instant::now();
    subject.starts();
    subject.ends_well(4);
    assert!(begun.elapsed() < Duration::from_secs(600), "the MIS need not take it for longer (X38)");
    let issued = subject.world.mis.est().record();
    let keys: BTreeSet<_> = issued.iter().map(|issued| issued.key_sha256.clone()).collect();
    assert!(keys.len() == 1 && subject.world.mis.est().alerts().is_empty(), "{issued:?}");
}
