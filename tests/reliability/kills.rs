//! The agent is killed at random moments of enrolling and renewing, with the key rotated or kept,
//! at an MIS that binds new keys and at one that does not. It is always the same device in the end,
//! with what belongs together.
//!
//! Sixteen times for each of the four settings, and 250 times in the long form; `SEED` repeats a
//! run's draws.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use development_mis::Policy;

use crate::support::agent::{PATIENCE, pause};
use crate::support::reader::{Published, Readers};
use crate::world::{self, World};

#[test]
fn kills_with_rotation_at_an_mis_that_binds_new_keys() {
    Story::new(true, true).tell();
}

#[test]
fn kills_with_rotation_at_an_mis_that_binds_no_new_keys() {
    Story::new(true, false).tell();
}

#[test]
fn kills_without_rotation_at_an_mis_that_binds_new_keys() {
    Story::new(false, true).tell();
}

#[test]
fn kills_without_rotation_at_an_mis_that_binds_no_new_keys() {
    Story::new(false, false).tell();
}

/// Of so many kills one is in an enrollment, the others are in renewals.
const RENEWALS_TO_AN_ENROLLMENT: u32 = 4;

struct Story {
    world: World,
    binds_new_keys: bool,
    draws: u64,
    /// How long it takes from the start to the first SVID, and from a start to the next.
    enrollment: Duration,
    renewal: Duration,
}

impl Story {
    fn new(rotate: bool, binds_new_keys: bool) -> Self {
        let world = World::with(|settings| {
            world::long_enough(&mut settings.policy);
            let Policy { rotation_at_enrollment, rotation_at_renewal, .. } = &mut settings.policy;
            (*rotation_at_enrollment, *rotation_at_renewal) = (binds_new_keys, binds_new_keys);
            (settings.policy.enrollment_limit, settings.policy.renewal_limit) = (None, None);
        });
        let config = world::config(&world.mis, &world.tpm, world::SOON);
        world.device.configure(&config.replace("[key]", &format!("[key]\nrotate = {rotate}")));
        let draws = seed_of_run();
        Self { world, binds_new_keys, draws, enrollment: Duration::ZERO, renewal: Duration::ZERO }
    }

    fn tell(mut self) {
        let kills = if crate::is_long() { 250 } else { 16 };
        let begin = Instant::now();
        self.enrollment = self.until_an_svid();
        self.world.kill();
        self.renewal = self.until_another_svid();
        self.world.kill();
        let readers = Readers::of(self.world.device.path("state/svid/device"));
        let (mut enrollments, mut renewals) = (0, 0);
        for kill in 0..kills {
            if kill % RENEWALS_TO_AN_ENROLLMENT == 0 {
                self.begins_with_nothing();
                self.is_killed_within(self.enrollment);
                self.until_an_svid();
                enrollments += 1;
            } else {
                self.is_killed_within(self.renewal);
                self.until_another_svid();
                renewals += 1;
            }
            self.is_one_device();
            self.world.kill();
            self.nothing_is_left_over();
        }
        self.until_another_svid();
        self.is_one_device();
        self.world.kill();
        let counters = self.world.tpm.run("tpm2_getcap", &["properties-variable"]);
        assert!(counters.contains("TPM2_PT_LOCKOUT_COUNTER: 0x0"), "the TPM counts attacks: {counters}");
        println!(
            "killed {enrollments} times while it enrolled (within {:?}), {renewals} times while it renewed (within {:?}), \
             and {kills} times as it was whole again, in {:?}; publications that its readers saw: {:?}",
            self.enrollment,
            self.renewal,
            begin.elapsed(),
            readers.end(),
        );
    }

    /// A new device; where the MIS binds new keys, the same with its state lost.
    fn begins_with_nothing(&mut self) {
        std::fs::remove_dir_all(self.world.device.path("state")).unwrap();
        if !self.binds_new_keys {
            self.world.mis.forget_devices().unwrap();
        }
    }

    fn is_killed_within(&mut self, usual: Duration) {
        self.world.device.spawn();
        let moment = usual.mul_f64(1.2 * self.draw());
        std::thread::sleep(moment);
        self.world.kill();
    }

    fn until_an_svid(&mut self) -> Duration {
        self.until("an SVID is published", |story| story.published().is_some())
    }

    fn until_another_svid(&mut self) -> Duration {
        let before = self.published().map(|published| published.serial());
        self.until("another SVID is published", |story| {
            story.published().is_some_and(|now| Some(now.serial()) != before)
        })
    }

    fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) -> Duration {
        let begin = Instant::now();
        self.world.device.spawn();
        while !holds(self) {
            let waited = begin.elapsed();
            assert!(waited < PATIENCE, "{what}: not within {waited:?}\n{}", self.world.device.log());
            pause();
        }
        begin.elapsed()
    }

    fn published(&self) -> Option<Published> {
        Published::read(&self.world.device.path("state/svid/device"))
    }

    /// To its MIS, by what it publishes, and by what the running agent says.
    fn is_one_device(&self) {
        let log = || self.world.device.log();
        let published = self.published().unwrap();
        published.belongs_together().unwrap_or_else(|why| panic!("{why}\n{}", log()));
        let devices = self.world.mis.devices();
        assert_eq!(devices.len(), 1, "{devices:?}\n{}", log());
        assert_eq!(published.spiffe_id(), devices[0].ldi, "{}", log());
    }

    /// Nothing could not be used, and nothing half-written piles up: each name is written again by
    /// the next.
    fn nothing_is_left_over(&self) {
        let names = |directory: &str| -> Vec<String> {
            let entries = std::fs::read_dir(self.world.device.path(directory)).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        let (private, published) = (names("state/private"), names("state/svid/device"));
        let unusable = private.iter().find(|name| name.contains("unusable"));
        assert!(unusable.is_none(), "{private:?}\n{}", self.world.device.log());
        let half_written = private.iter().filter(|name| name.ends_with(".new")).count();
        assert!(half_written <= 1, "one is written at a time: {private:?}");
        assert!(published.len() <= 5, "two generations, current, and what is being made: {published:?}");
    }

    fn draw(&mut self) -> f64 {
        next_draw(&mut self.draws)
    }
}

/// In `0.0..1.0` (xorshift64*).
pub(crate) fn next_draw(draws: &mut u64) -> f64 {
    *draws ^= *draws >> 12;
    *draws ^= *draws << 25;
    *draws ^= *draws >> 27;
    (draws.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1_u64 << 53) as f64
}

/// What the draws of this run begin with, which is printed.
pub(crate) fn seed_of_run() -> u64 {
    let any = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let draws = seed().unwrap_or_else(any);
    println!("SEED={draws}");
    draws
}

fn seed() -> Option<u64> {
    std::env::var("SEED").ok().map(|seed| seed.parse().unwrap_or_else(|e| panic!("SEED={seed}: {e}")))
}
