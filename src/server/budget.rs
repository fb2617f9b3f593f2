//! Budget of a connection for what earns no response: control frames of HTTP/2, and bytes of
//! HTTP/1.1 that come in tiny pieces. Reading them costs the agent time, and no permit limits them.
//!
//! What the agent sends earns more: gRPC clients respond to each message with updates of windows
//! and with a ping.

use std::time::{Duration, Instant};

/// Units that a connection may have unspent. A small frame, or a read without one, costs one.
const UNITS: u32 = 512;
/// Time in which [`UNITS`] are given again.
pub(super) const PERIOD: Duration = Duration::from_secs(10);
/// Units for each frame of a response in HTTP/2, or each piece of one in HTTP/1.1: a client sends
/// at most two updates of windows and two pings for it, and its request and its cancellation.
const EARNED: u32 = 8;
/// Bytes of a header block that cost one unit more: each may be a field.
const HEADER_BYTES: usize = 128;
/// The same for all other bytes.
const OTHER_BYTES: usize = 2048;

/// The units of one connection that are left.
#[derive(Debug)]
pub(super) struct Budget {
    left: u32,
    since: Instant,
}

/// The budget is exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more came in than the responses on this connection account for")]
pub(super) struct OverBudget;

impl Budget {
    pub(super) fn new(now: Instant) -> Self {
        Self { left: UNITS, since: now }
    }

    pub(super) fn spend(&mut self, cost: u32, now: Instant) -> Result<(), OverBudget> {
        let elapsed = now.saturating_duration_since(self.since);
        let given = elapsed.as_micros() * u128::from(UNITS) / PERIOD.as_micros();
        match u32::try_from(given) {
            Ok(given) if given < UNITS => {
                self.left = (self.left + given).min(UNITS);
                self.since += PERIOD * given / UNITS; // what is left of the time counts later
            }
            _ => *self = Self::new(now),
        }
        self.left = self.left.checked_sub(cost).ok_or(OverBudget)?;
        Ok(())
    }

    /// Adds the units for `count` frames or pieces of responses.
    pub(super) fn earn(&mut self, count: u32) {
        self.left = self.left.saturating_add(count.saturating_mul(EARNED)).min(UNITS);
    }
}

/// Cost of one read of `length` bytes of HTTP/1.1.
pub(super) fn cost_of_read(length: usize) -> u32 {
    units(length, OTHER_BYTES)
}

fn units(length: usize, of: usize) -> u32 {
    u32::try_from(length / of).unwrap_or(u32::MAX).saturating_add(1)
}

/// Finds the frames in one direction of an HTTP/2 connection (RFC 9113, section 4.1).
#[derive(Debug)]
pub(super) struct Frames {
    /// Bytes before the next head: of the preface, or of a payload.
    before: usize,
    head: [u8; HEAD],
    read: usize,
}

const HEAD: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
/// Length of a client's preface (RFC 9113, section 3.4).
const PREFACE: usize = 24;

/// Head of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    kind: u8,
    length: usize,
    pub(super) stream: u32,
}

impl Frame {
    fn of([a, b, c, kind, _flags, stream @ ..]: [u8; HEAD]) -> Self {
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        Self { kind, length, stream: u32::from_be_bytes(stream) & 0x7fff_ffff }
    }

    /// Units that it costs the client.
    pub(super) fn cost(self) -> u32 {
        let is_header = matches!(self.kind, HEADERS | CONTINUATION);
        units(self.length, if is_header { HEADER_BYTES } else { OTHER_BYTES })
    }

    /// Whether it is part of a response, and no mere acknowledgement.
    pub(super) fn is_response(self) -> bool {
        matches!(self.kind, DATA | HEADERS)
    }
}

impl Frames {
    pub(super) fn of_client() -> Self {
        Self { before: PREFACE, head: [0; HEAD], read: 0 }
    }

    pub(super) fn of_server() -> Self {
        Self { before: 0, ..Self::of_client() }
    }

    /// Calls `each` for every frame whose head is complete with these bytes.
    pub(super) fn take(&mut self, mut bytes: &[u8], mut each: impl FnMut(Frame)) {
        while !bytes.is_empty() {
            let skipped = self.before.min(bytes.len());
            self.before -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let missing = self.head.get_mut(self.read..).unwrap_or_default();
            let taken = missing.len().min(bytes.len());
            let (now, later) = bytes.split_at(taken);
            missing.iter_mut().zip(now).for_each(|(to, from)| *to = *from);
            (self.read, bytes) = (self.read + taken, later);
            if self.read == HEAD {
                let frame = Frame::of(self.head);
                (self.before, self.read) = (frame.length, 0);
                each(frame);
            }
        }
    }

    /// Whether the next byte begins a frame.
    pub(super) fn is_at_boundary(&self) -> bool {
        self.before == 0 && self.read == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, stream: u32, length: usize) -> Vec<u8> {
        let [_, a, b, c] = (length as u32).to_be_bytes();
        let mut frame = vec![a, b, c, kind, 0];
        frame.extend(stream.to_be_bytes());
        frame.resize(HEAD + length, 0xff);
        frame
    }

    #[test]
    fn frames_are_found_however_the_bytes_arrive() {
        let sent = [(4, 0, 6), (1, 1, 300), (0, 1, 0), (6, 0, 8), (9, 0x8000_0003, 1), (0, 3, 70_000)];
        let mut bytes = vec![b'P'; PREFACE];
        sent.iter().for_each(|&(kind, stream, length)| bytes.extend(frame(kind, stream, length)));
        for at_once in [1, 2, 8, 9, 10, 33, 1000, bytes.len()] {
            let (mut frames, mut found) = (Frames::of_client(), Vec::new());
            for bytes in bytes.chunks(at_once) {
                frames.take(bytes, |frame| found.push((frame.kind, frame.stream, frame.length)));
            }
            let expected = sent.map(|(kind, stream, length)| (kind, stream & 0x7fff_ffff, length));
            assert_eq!(found, expected, "{at_once} at once");
            assert!(frames.is_at_boundary());
        }
    }

    #[test]
    fn budget_refills_with_time_and_is_never_saved_up() {
        let begin = Instant::now();
        let mut budget = Budget::new(begin);
        assert!((0..UNITS).all(|_| budget.spend(1, begin).is_ok()));
        assert_eq!(budget.spend(1, begin), Err(OverBudget));
        assert!(budget.spend(UNITS / 2, begin + PERIOD / 2).is_ok());
        assert_eq!(budget.spend(1, begin + PERIOD / 2), Err(OverBudget));
        assert!(budget.spend(UNITS, begin + 1000 * PERIOD).is_ok());
        assert_eq!(budget.spend(1, begin + 1000 * PERIOD), Err(OverBudget));
        // Many small payments cost no more.
        let mut budget = Budget::new(begin);
        budget.spend(UNITS, begin).unwrap();
        let mut now = begin;
        let spent = (0..10_000)
            .filter(|_| {
                now += PERIOD / 10_000;
                budget.spend(1, now).is_ok()
            })
            .count();
        assert!((UNITS as usize - 2..=UNITS as usize).contains(&spent), "{spent}");
    }

    #[test]
    fn budget_is_earned_by_responses() {
        let now = Instant::now();
        let mut budget = Budget::new(now);
        for _ in 0..10_000 {
            budget.earn(1); // a message of a stream
            budget.spend(4, now).unwrap(); // two updates of windows, and two pings
        }
        let mut budget = Budget::new(now);
        let refused = |budget: &mut Budget| {
            let request = Frame { kind: HEADERS, length: 300, stream: 1 };
            let body = Frame { kind: DATA, length: 5, stream: 1 };
            let spent = budget.spend(request.cost() + 2 * body.cost(), now);
            budget.earn(1);
            spent
        };
        assert!((0..10_000).all(|_| refused(&mut budget).is_ok()), "calls that end at once");
    }

    #[test]
    fn large_header_blocks_cost_more_than_large_bodies() {
        let cost = |kind, length| Frame { kind, length, stream: 1 }.cost();
        assert_eq!((cost(6, 8), cost(8, 4), cost(0, 0), cost(HEADERS, 100)), (1, 1, 1, 1));
        assert_eq!((cost(HEADERS, 16_384), cost(CONTINUATION, 16_384)), (129, 129));
        // A request that is refused is read to its end.
        assert!(16 * cost(DATA, 16_384) < UNITS / 2);
    }
}
