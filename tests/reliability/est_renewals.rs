//! An identity is renewed over EST, and the agent is killed at a call on its files: with the key that
//! it has, and with a new one. The SVID from before, or its successor, is there at every moment; what
//! was requested is requested once more with the same key and byte for byte, and nothing is requested
//! where what was issued is stored.
//!
//! The short form takes every sixth call, from a random one on (`SEED`); the long form takes all.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use development_mis::{Endpoint, Entry};

use crate::est::{CLIENT, DEVICES, NAME, Subject};
use crate::faults::wait;
use crate::kills::{next_draw, seed_of_run};
use crate::support::reader::Published;
use crate::support::strace::{Call, Strace, What};

/// Of so many calls, the short form takes one.
const SAMPLE: usize = 6;

/// A device whose SVID is renewed again and again, each time from the same state.
struct Renewing {
    subject: Subject,
    is_rekey: bool,
    /// Serial number and public key of the SVID that it begins with.
    serial: String,
    key: String,
}

impl Renewing {
    fn new(is_rekey: bool) -> Self {
        let rotate = if is_rekey { "[identity.key]\nrotate = true\n" } else { "" };
        let mut subject = Subject::with(rotate);
        subject.begins_with_a_token();
        subject.starts();
        subject.ends_well(1);
        let mut renewing = Self { subject, is_rekey, serial: String::new(), key: String::new() };
        // Twice, so that there is a generation of its files to be cleared away.
        for _ in 0..2 {
            renewing.serial = renewing.is_settled();
            renewing.restarts();
            renewing.renews();
        }
        renewing.serial = renewing.is_settled();
        renewing.key = renewing.requests().last().and_then(|last| last.csr_spki_sha256.clone()).unwrap();
        assert!(renewing.subject.world.device.stop().success());
        copy(&renewing.path("state"), &renewing.path("state-before"));
        renewing
    }

    fn path(&self, name: &str) -> PathBuf {
        self.subject.world.device.path(name)
    }

    /// A new process need not wait before its first renewal.
    fn restarts(&mut self) {
        if self.subject.world.device.is_running() {
            assert!(self.subject.world.device.stop().success());
        }
        self.subject.world.tpm.flush();
        self.subject.starts();
        self.is_settled();
    }

    /// A running agent, with the SVID that it begins with.
    fn begins(&mut self) {
        if self.subject.world.device.is_running() {
            assert!(self.subject.world.device.stop().success());
        }
        let _ = fs::remove_dir_all(self.path("state"));
        copy(&self.path("state-before"), &self.path("state"));
        self.subject.said = self.subject.world.device.log().len();
        self.restarts();
        assert_eq!(self.is_settled(), self.serial);
    }

    /// Sends the admin command to renew. The response is not waited for: the agent may never send one.
    fn requests_renewal(&self) -> UnixStream {
        let mut stream = UnixStream::connect(self.path("run/admin.sock")).unwrap();
        let head =
            format!("POST /v1/identities/{NAME}/renew HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream
    }

    fn renews(&self) {
        let _connection = self.requests_renewal();
        wait("another SVID", || {
            let serial = self.subject.status()["svid"]["serial"].clone();
            serial.is_string() && serial != self.serial
        });
        self.is_settled();
        wait("the request is wiped", || !self.record("est-request.json").exists());
    }

    fn record(&self, name: &str) -> PathBuf {
        self.path("state/private/identities").join(NAME).join(name)
    }

    /// Waits until nothing is under way, and returns the serial number of what is current then.
    fn is_settled(&self) -> String {
        self.subject.becomes_active();
        wait("nothing is under way", || {
            let generations = fs::read_dir(self.path(&format!("state/svid/{NAME}"))).into_iter().flatten();
            !self.record("issued.json").exists() && generations.filter(is_generation).count() <= 2
        });
        let status = self.subject.status();
        assert_eq!(status["spiffeId"], CLIENT);
        let serial = status["svid"]["serial"].as_str().unwrap().to_owned();
        wait("it is published", || self.published().serial() == serial);
        serial
    }

    /// What is published, at any moment: it is there, and belongs together.
    fn published(&self) -> Published {
        let published = Published::read(&self.path(&format!("state/svid/{NAME}"))).expect("it is published");
        published.belongs_together().unwrap_or_else(|why| panic!("{why}"));
        published
    }

    fn requests(&self) -> Vec<Entry> {
        self.subject.world.seen(Endpoint::EstReenroll)
    }

    /// The calls of a renewal that goes well.
    fn list(&mut self) -> Vec<Call> {
        self.begins();
        let strace = Strace::watch(self.subject.world.device.pid(), &self.subject.log_file());
        self.renews();
        self.subject.own_calls(&strace.detach())
    }

    fn is_killed_at(&mut self, list: &[Call], nth: usize) {
        self.begins();
        let before = self.requests().len();
        let connection = RefCell::new(None);
        let strace = self.subject.brings_about(list, nth, What::Kills, |_| {
            connection.replace(Some(self.requests_renewal()));
        });
        wait("the agent is dead", || self.subject.world.device.has_ended().is_some());
        drop((strace, connection));
        let is_stored = self.record("issued.json").exists();
        // Whoever reads the files meanwhile finds one of the two.
        let left = self.published().serial();
        self.subject.world.tpm.flush();
        self.subject.starts();
        let serial = self.is_settled();
        let log = self.subject.world.device.log()[self.subject.said..].to_owned();
        assert!([&self.serial, &serial].contains(&&left), "{left:?}\n{log}");
        // Each of the two processes has sent one request at most: the second one none where what the
        // first was issued is stored.
        let sent = self.requests().split_off(before);
        let is_adopted = serial != self.serial;
        assert!(sent.len() <= if is_adopted && !is_stored { 2 } else { 1 }, "{sent:#?}\n{log}");
        assert!(!is_adopted || !sent.is_empty(), "{log}");
        // One renewal more: the same one again, if that has not come to its end.
        let begun_with = std::mem::replace(&mut self.serial, serial);
        self.renews();
        self.serial = begun_with;
        let all = self.requests().split_off(before);
        assert_eq!(all.len(), sent.len() + 1, "one request for one renewal: {all:#?}\n{log}");
        assert!(all.iter().all(|entry| entry.status.is_none_or(|status| status == 200)), "{all:#?}");
        let repeated = if is_adopted { &sent } else { &all };
        let key = |entry: &Entry| entry.csr_spki_sha256.clone().unwrap();
        let keys: BTreeSet<_> = repeated.iter().map(key).collect();
        let bodies: BTreeSet<_> = repeated.iter().map(|entry| entry.body_sha256.clone()).collect();
        assert_eq!((keys.len(), bodies.len()), (1, 1), "the same key and request: {all:#?}\n{log}");
        let last = all.last().map(key).unwrap();
        if self.is_rekey {
            assert!(!keys.contains(&self.key), "the key is new: {all:#?}");
            assert_eq!(keys.contains(&last), !is_adopted, "and another one each time: {all:#?}");
        } else {
            assert!(keys.contains(&self.key) && last == self.key, "the key stays: {all:#?}");
        }
        self.subject.nothing_is_given_up();
        assert!(self.subject.world.mis.est().violations().is_empty());
    }
}

/// Whether it is the directory of a generation, and not what points at one.
fn is_generation(entry: &std::io::Result<fs::DirEntry>) -> bool {
    entry.as_ref().is_ok_and(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

/// Kills at the calls of a renewal, on several devices at a time.
fn kills_while_it_renews(is_rekey: bool) {
    let begun = Instant::now();
    let list = Renewing::new(is_rekey).list();
    let (first, step) = if crate::is_long() {
        (0, 1)
    } else {
        ((next_draw(&mut seed_of_run()) * SAMPLE as f64) as usize, SAMPLE)
    };
    let cases: Vec<usize> = (first..list.len()).step_by(step).collect();
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..DEVICES.min(cases.len()) {
            scope.spawn(|| {
                let mut renewing = Renewing::new(is_rekey);
                while let Some(&nth) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let killed = catch_unwind(AssertUnwindSafe(|| renewing.is_killed_at(&list, nth)));
                    if killed.is_err() {
                        failed.lock().unwrap().push(&list[nth]);
                        eprintln!("--- that was a kill at {:?}", list[nth]);
                        renewing = Renewing::new(is_rekey);
                    }
                }
            });
        }
    });
    println!(
        "killed at {} of {} calls of a renewal over EST, in {} s",
        cases.len(),
        list.len(),
        begun.elapsed().as_secs()
    );
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} cases failed: {failed:#?}", failed.len());
}

#[test]
#[ignore = "needs root: strace traces an undumpable agent"]
fn file_system_calls_can_be_the_last_of_a_renewal() {
    kills_while_it_renews(false);
}

#[test]
#[ignore = "needs root: strace traces an undumpable agent"]
fn file_system_calls_can_be_the_last_of_a_rekey() {
    kills_while_it_renews(true);
}
