//! All devices and their MIS, from moment to moment.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::counts::Counts;
use crate::device::{Device, Moment, Random};
use crate::mis::Mis;

/// Bits of a queue entry that say which device it is for.
const ID_BITS: u32 = 17;

pub(crate) struct World {
    pub(crate) mis: Mis,
    pub(crate) watcher: Watcher,
    pub(crate) now: Moment,
    devices: Vec<Device>,
    /// When something happens next on each device: one entry each, the moment above its number.
    queue: BinaryHeap<Reverse<u64>>,
}

/// What is written down while the world turns.
pub(crate) struct Watcher {
    pub(crate) counts: Counts,
    /// SVIDs that were past their end when their successor came, since it was last looked.
    pub(crate) expired: u64,
    /// When the last successor of such an SVID came.
    pub(crate) last_back: Option<Moment>,
    /// The least validity that was left when a successor came; zero after the end.
    pub(crate) least_left: Option<Moment>,
    /// The longest time from a renewal moment to the adoption of the successor.
    pub(crate) longest_delay: Moment,
    /// Requests of second identities. They are in no other figure.
    pub(crate) requests_of_the_second: u64,
    /// Requests for a binding to the WFM.
    pub(crate) bindings: u64,
}

impl Watcher {
    fn new() -> Self {
        Self {
            counts: Counts::new(),
            expired: 0,
            last_back: None,
            least_left: None,
            longest_delay: 0,
            requests_of_the_second: 0,
            bindings: 0,
        }
    }

    pub(crate) fn adopted(&mut self, valid_until: Option<Moment>, renew_at: Option<Moment>, at: Moment) {
        let delay = renew_at.map_or(0, |renew_at| at.saturating_sub(renew_at));
        self.longest_delay = self.longest_delay.max(delay);
        let Some(valid_until) = valid_until else { return };
        let left = valid_until.saturating_sub(at);
        self.least_left = Some(self.least_left.map_or(left, |least| least.min(left)));
        if valid_until < at {
            self.expired += 1;
            self.last_back = Some(at);
        }
    }

    pub(crate) fn forget_expired(&mut self) {
        (self.expired, self.last_back, self.least_left) = (0, None, None);
        self.longest_delay = 0;
    }
}

impl World {
    /// New devices, each switched on at a random moment before `all_on`.
    pub(crate) fn new(size: usize, seed: u64, mis: Mis, all_on: Moment) -> Self {
        let mut devices: Vec<_> = (0..size).map(|id| Device::new(&mis, Random::new(seed, id))).collect();
        let begins = devices.iter_mut().map(|device| device.random().between(0, all_on));
        let queue = begins.enumerate().map(|(id, at)| entry(at, id)).collect::<Vec<_>>().into();
        Self { mis, watcher: Watcher::new(), now: 0, devices, queue }
    }

    pub(crate) fn runs_until(&mut self, end: Moment) {
        while let Some(mut first) = self.queue.peek_mut() {
            let (at, id) = (first.0 >> ID_BITS, (first.0 & ((1 << ID_BITS) - 1)) as usize);
            if at >= end {
                break;
            }
            let next = self.devices[id].turn(id, at, &mut self.mis, &mut self.watcher);
            *first = entry(next, id);
        }
        self.now = end;
    }

    /// All are off for a while, and switched on again in one second.
    pub(crate) fn is_off_for(&mut self, pause: Moment) {
        self.now += pause;
        let mut entries = Vec::with_capacity(self.devices.len());
        for (id, device) in self.devices.iter_mut().enumerate() {
            let at = self.now + device.random().between(0, 1000);
            device.restart(at);
            entries.push(entry(at, id));
        }
        self.queue = entries.into();
    }

    /// Devices that have ever got one.
    pub(crate) fn with_an_svid(&self) -> usize {
        self.devices.iter().filter(|device| device.valid_until().is_some()).count()
    }

    /// Devices without a valid SVID; where both identities are measured, of either.
    pub(crate) fn without_a_valid_svid(&self) -> usize {
        let both = self.mis.counts_the_second();
        let until = |device: &Device| if both { device.all_valid_until() } else { device.valid_until() };
        self.devices.iter().filter(|device| until(device).is_none_or(|until| until < self.now)).count()
    }
}

fn entry(at: Moment, id: usize) -> Reverse<u64> {
    Reverse(at << ID_BITS | id as u64)
}
