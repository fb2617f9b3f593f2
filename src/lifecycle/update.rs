//! Taking in what happened: the table of miaf-v0 P, and what each outcome does to what is held.

use std::time::Duration;

use super::backoff::BackoffPolicy;
use super::retry_gate::{Failure, FailureKind, LastError, Verdict};
use super::types::{
    Action, BundleFacts, Command, DiscoveryFacts, Draw, Event, KeyChoice, NotAdopted, Request, SvidFacts,
};
use super::{
    Blocked, BundleForChain, CurrentKey, Discovery, HeldBundle, HeldSvid, IssuedChain, IssuesInVain,
    Lifecycle, PendingKey,
};
use crate::time::{BootTime, Now, Timestamp};

/// Between two occasions from outside to try again at once.
const SHORTEST_BETWEEN_OPENINGS: Duration = Duration::from_secs(5);

/// The old chip may have been put back.
const BETWEEN_LOOKS_FOR_A_LOST_KEY: Duration = Duration::from_secs(3600);

/// However short-lived the SVIDs of an MIS are, it is left alone this long after each.
const SHORTEST_BETWEEN_ISSUES: Duration = Duration::from_secs(5);

impl Lifecycle {
    pub(super) fn update(&mut self, event: Event, now: Now, draw: Draw<'_>) {
        let ended = match event {
            Event::Wake | Event::Command(_) => None,
            _ => self.in_flight.take(),
        };
        match event {
            Event::Wake => {}
            Event::Command(order) => self.told(order, now),
            Event::Discovery(outcome) => self.discovery_ended(outcome, now, draw),
            Event::Bundle(outcome) => self.bundle_ended(outcome, now, draw),
            Event::KeyCreated(Ok(())) => {
                self.pending_key = Some(PendingKey { refused: false });
                self.identity_gate.passed();
            }
            Event::KeyCreated(Err(failure)) => self.identity_failed(failure, now, draw),
            Event::KeyProven(outcome) => self.key_proven(outcome, now, draw),
            Event::Issued(Ok(())) => {
                self.admission_pending = false;
                self.identity_gate.passed();
                self.answer = Some(IssuedChain {
                    not_before: None,
                    bundle: BundleForChain::AsHeld,
                    asks_anew_at: None,
                    key: CurrentKey::Works,
                });
            }
            Event::Issued(Err(failure)) => match ended {
                Some(Action::Request(request, key)) => self.refused(request, key, failure, now, draw),
                _ => self.identity_failed(failure, now, draw),
            },
            Event::Adopted(outcome) => self.adopt_ended(outcome, now, draw),
        }
    }

    fn told(&mut self, order: Command, now: Now) {
        let from = self.open_gates(now);
        if self.key_is_lost() {
            self.key_gate.succeeded(); // it is proven before anything is asked for
        }
        self.is_corrected();
        self.reauthenticate &= self.key_is_lost(); // both ways are open again, if there is a key to renew with
        if order == Command::Renew {
            if let Some(svid) = &mut self.svid {
                svid.drawn_before = None; // whatever else it was to be
                svid.renew_at = svid.renew_at.min(now.wall.after(now.boot.until(from)));
            }
            return;
        }
        self.time.is_vouched_for(now);
        if let (Command::ReplaceKey, Some(svid)) = (order, &mut self.svid) {
            self.replace_lost_key = true;
            if matches!(svid.key, CurrentKey::Works) {
                svid.key = CurrentKey::Unproven; // it did when it was last used
            }
        }
        if let Some(discovery) = &mut self.discovery {
            discovery.look_from = Some(now.boot);
        }
        if let Some(bundle) = &mut self.bundle {
            bundle.refresh_at = bundle.refresh_at.min(from);
        }
    }

    /// What waits after a failure need not wait longer than until the moment returned. However often this is done: the MIS
    /// is not asked at the pace of a script, or of a clock that is set every second.
    pub(super) fn open_gates(&mut self, now: Now) -> BootTime {
        let from = match self.opened_from {
            Some(last) if now.boot <= last => last,
            Some(last) => last.after(SHORTEST_BETWEEN_OPENINGS).max(now.boot),
            None => now.boot,
        };
        self.opened_from = Some(from);
        for gate in
            [&mut self.discovery_gate, &mut self.bundle_gate, &mut self.identity_gate, &mut self.key_gate]
        {
            gate.forgive(from, now);
        }
        self.asks_for_another_svid_from(from);
        from
    }

    /// What the MIS issues may be better by now.
    fn asks_for_another_svid_from(&mut self, from: BootTime) {
        let asks_anew_at = self.answer.as_mut().and_then(|answer| answer.asks_anew_at.as_mut());
        for at in [self.issues_in_vain.pause_until.as_mut(), asks_anew_at].into_iter().flatten() {
            *at = (*at).min(from);
        }
    }

    /// What was refused for good may be asked once more (miaf-v0 P2).
    fn is_corrected(&mut self) {
        self.blocked = Blocked::default();
        self.rotation_refused = false;
        if let Some(pending) = &mut self.pending_key {
            pending.refused = false;
        }
    }

    fn key_proven(&mut self, outcome: Result<(), Failure>, now: Now, draw: Draw<'_>) {
        match outcome {
            Ok(()) => {
                self.key_gate.succeeded();
                self.replace_lost_key = false; // there is nothing to replace any more
                self.blocked.current_key_is_back();
                if let Some(svid) = &mut self.svid {
                    svid.key = CurrentKey::Works;
                }
            }
            Err(failure) if failure.kind == FailureKind::CurrentKeyLost => {
                self.current_key_lost(failure, now)
            }
            Err(failure) => {
                let retry = self.identity_retry(now.wall);
                self.key_gate.failed(failure, retry, now, draw);
            }
        }
    }

    fn current_key_lost(&mut self, failure: Failure, now: Now) {
        self.key_gate.succeeded();
        self.key_gate.pause(BETWEEN_LOOKS_FOR_A_LOST_KEY, now); // the old chip may be put back
        if let Some(svid) = &mut self.svid {
            svid.key = CurrentKey::Lost(LastError { report: failure.report, at: now.wall, permanent: true });
        }
    }

    fn discovery_ended(&mut self, outcome: Result<DiscoveryFacts, Failure>, now: Now, draw: Draw<'_>) {
        match outcome {
            Ok(facts) => {
                self.discovery_gate.succeeded();
                let believed = self.time.allows(now);
                self.looks_for_the_time =
                    if believed { 0 } else { self.looks_for_the_time.saturating_add(1) };
                // While a time is in doubt, the next response is wanted at once, and not for long.
                if !self.asks_for_the_time_again() {
                    let pause = if believed {
                        // An MIS that answers in turn with two documents, and with 404 under both, is not asked in a
                        // circle.
                        self.shortest_between_reads(now.wall)
                    } else {
                        self.until_the_next_look_for_the_time(draw)
                    };
                    self.discovery_gate.pause(pause, now);
                }
                if facts.changed {
                    self.is_corrected(); // perhaps the MIS was
                    self.identity_gate.forgive(now.boot, now);
                    self.asks_for_another_svid_from(now.boot);
                    self.bundle_gate.forgive(now.boot, now);
                    if let Some(bundle) = &mut self.bundle {
                        bundle.refresh_at = now.boot; // it may name another address
                    }
                }
                let stale_at = now.boot.after(spread(self.policy.bundle_refresh, draw));
                self.discovery = Some(Discovery {
                    facts,
                    read_at: now.wall,
                    stale_at,
                    look_from: None,
                    bundle_failed: false,
                });
            }
            Err(failure) => {
                let was_asked_for = !matches!(failure.kind, FailureKind::Local | FailureKind::Offline);
                let retry = self.discovery_retry(now);
                self.discovery_gate.failed(failure, retry, now, draw);
                // The last good document stays in use (miaf-v0 D4), and is asked after until the MIS answers. One that
                // was asked for for the sake of a bundle that is held is asked for again when the bundle fails again, and
                // no sooner.
                if let Some(discovery) = &mut self.discovery {
                    let for_the_bundle = std::mem::take(&mut discovery.bundle_failed);
                    if !for_the_bundle || !was_asked_for || self.bundle.is_none() {
                        discovery.look_from = Some(now.boot);
                    }
                }
            }
        }
    }

    fn bundle_ended(&mut self, outcome: Result<BundleFacts, Failure>, now: Now, draw: Draw<'_>) {
        match outcome {
            Ok(facts) => {
                self.bundle_gate.succeeded();
                let refresh_every = self.refresh_interval(&facts, now);
                let refresh_at = now.boot.after(spread(refresh_every, draw));
                self.bundle = Some(HeldBundle { refresh_at, refresh_every, is_empty: facts.is_empty });
                self.bundle_may_have_moved(facts.is_empty || facts.vouches == Some(false));
                if let Some(discovery) = &mut self.discovery
                    && self.discovery_gate.last_error().is_some()
                {
                    discovery.look_from = Some(now.boot); // what went wrong with it meanwhile may be over as well
                }
                self.svid_ends(facts, now, draw);
                self.hasten_renewal(facts, now, draw);
                match self.answer.as_mut().map(|answer| &mut answer.bundle) {
                    Some(wanted @ BundleForChain::Wanted) => *wanted = BundleForChain::Fetched,
                    Some(wanted @ BundleForChain::AnotherWanted) if facts.is_new => {
                        *wanted = BundleForChain::Fetched;
                    }
                    _ => {}
                }
            }
            Err(failure) => {
                let was_asked_for = !matches!(failure.kind, FailureKind::Local | FailureKind::Offline);
                self.bundle_may_have_moved(was_asked_for);
                let retry = self.bundle_retry();
                self.bundle_gate.failed(failure, retry, now, draw);
            }
        }
    }

    /// The discovery document tells where the bundle is now. It is read once for each response, or lack of one, that
    /// makes that doubtful.
    fn bundle_may_have_moved(&mut self, it_may: bool) {
        if let Some(discovery) = &mut self.discovery {
            discovery.bundle_failed |= it_may;
        }
    }

    /// Under another bundle the SVID held may last longer than it did, or not as long.
    fn svid_ends(&mut self, facts: BundleFacts, now: Now, draw: Draw<'_>) {
        let Some((ends, svid)) = facts.svid_ends.zip(self.svid.as_mut()) else { return };
        let is_sooner = ends < svid.facts.not_after;
        svid.facts.not_after = ends;
        let facts = svid.facts.clone();
        if is_sooner {
            let renew_at = self.draw_renewal_from_now_on(&facts, now, draw);
            if let Some(svid) = &mut self.svid {
                svid.renew_at = svid.renew_at.min(renew_at);
            }
        }
    }

    /// An SVID that no anchor leads to any more is of no use: it is renewed soon, and not by the whole fleet at once.
    fn hasten_renewal(&mut self, facts: BundleFacts, now: Now, draw: Draw<'_>) {
        let within = self.identity_retry(now.wall).cap.min(self.policy.bundle_refresh);
        let Some(svid) = &mut self.svid else { return };
        match (facts.vouches, svid.drawn_before) {
            (Some(false), None) => {
                svid.drawn_before = Some(svid.renew_at);
                svid.renew_at = svid.renew_at.min(now.wall.after(within.mul_f64(draw())));
            }
            // Servers that do not agree yet, most likely: there is no hurry after all.
            (Some(true), Some(drawn)) => {
                svid.renew_at = drawn;
                svid.drawn_before = None;
            }
            _ => {}
        }
    }

    /// A request for an SVID did not get one: the table of miaf-v0 P.
    fn refused(&mut self, request: Request, key: KeyChoice, failure: Failure, now: Now, draw: Draw<'_>) {
        match failure.kind {
            FailureKind::Pending => self.admission_pending = true,
            // The MIS has said nothing of it.
            FailureKind::Transient
            | FailureKind::Offline
            | FailureKind::Local
            | FailureKind::PendingKeyLost
            | FailureKind::CurrentKeyLost => {}
            _ => self.admission_pending = false,
        }
        if let (FailureKind::NotFound, Some(discovery)) = (failure.kind, &mut self.discovery) {
            discovery.look_from = Some(now.boot);
        }
        match failure.kind {
            FailureKind::KeyRotationRefused => {
                if key == KeyChoice::Pending {
                    self.rotation_refused = true;
                    if let Some(pending) = &mut self.pending_key {
                        pending.refused = true;
                    }
                }
                // The existing key, if there is one that was not refused itself, is tried without delay (R4).
                if key == KeyChoice::Pending && self.svid.is_some() && !self.key_is_lost() {
                    let pace = self.pace_after(&failure, now);
                    self.identity_gate.noted(failure, &pace, now, draw);
                } else {
                    self.blocked.enroll_without_current_key =
                        request == Request::Enroll && self.key_is_lost();
                    self.identity_failed_for(Some(request), failure, now, draw);
                }
            }
            FailureKind::NotAuthenticated if request == Request::Renew && self.may_enroll() => {
                self.reauthenticate = true; // R6: enroll again, now
                let pace = self.pace_after(&failure, now);
                self.identity_gate.noted(failure, &pace, now, draw);
            }
            // The factory certificate does not help: perhaps the 401 at renewal was not the MIS's. While the SVID is
            // good, renewal and enrollment are tried in turn, slowly (R7).
            FailureKind::NotAuthenticated
            | FailureKind::Slow
            | FailureKind::Permanent
            | FailureKind::NotFound
            | FailureKind::Transient
                if self.reauthenticates_early(now) =>
            {
                self.reauthenticate = false;
                self.identity_failed_for(Some(request), failure, now, draw);
            }
            FailureKind::Local if self.reauthenticates_early(now) => {
                self.reauthenticate = false;
                let slowly = Failure { kind: FailureKind::Slow, ..failure };
                self.identity_failed_for(Some(request), slowly, now, draw);
            }
            FailureKind::CurrentKeyLost => {
                self.identity_gate.passed(); // the MIS was not asked
                self.current_key_lost(failure, now);
            }
            FailureKind::PendingKeyLost => {
                self.pending_key = None; // whatever was certified for it, no one can use
                self.identity_failed(failure, now, draw);
            }
            _ => self.identity_failed_for(Some(request), failure, now, draw),
        }
    }

    fn identity_failed(&mut self, failure: Failure, now: Now, draw: Draw<'_>) {
        self.identity_failed_for(None, failure, now, draw);
    }

    fn identity_failed_for(&mut self, request: Option<Request>, failure: Failure, now: Now, draw: Draw<'_>) {
        let pace = self.pace_after(&failure, now);
        let verdict = self.identity_gate.failed(failure, pace, now, draw);
        if let (Verdict::Blocked, Some(request)) = (verdict, request) {
            self.blocked.put(request, self.identity_gate.last_error().cloned());
        }
    }

    /// As it will be when the wait that the MIS asked for is over.
    fn pace_after(&self, failure: &Failure, now: Now) -> BackoffPolicy {
        let svid = self.svid.as_ref().map(|svid| &svid.facts);
        self.policy.identity_pace(svid, now.wall.after(failure.asked().unwrap_or_default()))
    }

    fn adopt_ended(&mut self, outcome: Result<SvidFacts, NotAdopted>, now: Now, draw: Draw<'_>) {
        match outcome {
            Ok(facts) => {
                if facts.key == KeyChoice::Pending {
                    self.pending_key = None;
                }
                let key = self.answer.take().map_or(CurrentKey::Unproven, |answer| answer.key);
                self.reauthenticate = false;
                self.blocked = Blocked::default();
                self.identity_gate.succeeded_late(now);
                self.identity_gate.pause(SHORTEST_BETWEEN_ISSUES, now);
                self.counts_issue(&facts, now, draw);
                self.key_gate.succeeded();
                self.replace_lost_key = false;
                let renew_at = self.draw_renewal_from_now_on(&facts, now, draw);
                self.svid = Some(HeldSvid { facts, renew_at, key, drawn_before: None });
            }
            Err(NotAdopted::Early(not_before)) => {
                if let Some(answer) = &mut self.answer {
                    answer.not_before = Some(not_before);
                }
            }
            Err(NotAdopted::UnknownIssuer) => {
                if let Some(answer) = &mut self.answer {
                    answer.bundle = BundleForChain::Wanted;
                }
                // It may have failed when nobody waited for it, and be looked at again in an hour.
                self.bundle_gate.forgive(now.boot, now);
            }
            Err(NotAdopted::IssuerExpired(failure)) => {
                match self.answer.as_ref().and_then(|answer| answer.asks_anew_at) {
                    Some(at) => self.identity_gate.failed_as_before(failure, at, now),
                    None => self.unusable_answer(failure, now, draw),
                }
                if let Some(answer) = &mut self.answer {
                    answer.bundle = BundleForChain::AnotherWanted;
                    answer.asks_anew_at =
                        answer.asks_anew_at.or(Some(now.boot.after(self.identity_gate.opens_in(now))));
                }
            }
            Err(NotAdopted::Kept(failure)) => self.identity_failed(failure, now, draw),
            Err(NotAdopted::Refused(failure)) => {
                self.answer = None;
                self.unusable_answer(failure, now, draw);
            }
        }
    }

    /// An SVID was issued, and cannot be used. As long as the one held can be, it gets its tries (R7); from then on there is
    /// nothing to lose by asking slowly, however short the lifetimes are: each answer is an SVID that the MIS has issued.
    fn unusable_answer(&mut self, failure: Failure, now: Now, draw: Draw<'_>) {
        if self.holds_valid_svid(now) {
            self.identity_failed(failure, now, draw);
        } else {
            self.identity_gate.failed(failure, self.policy.retry, now, draw);
        }
    }

    /// Leaves an MIS alone that issues SVIDs which end no later than those before them: the longer, the more of them.
    fn counts_issue(&mut self, facts: &SvidFacts, now: Now, draw: Draw<'_>) {
        let before = std::mem::take(&mut self.issues_in_vain);
        let Some(held) = self.svid.as_ref().filter(|held| facts.not_after <= held.facts.not_after) else {
            return;
        };
        let count = before.count.saturating_add(1);
        // What is left gets shorter each time, and must not set the pace.
        let pace = before.pace.unwrap_or_else(|| self.policy.pace_in_vain(&held.facts));
        let pause = pace.interval(count).mul_f64(1.0 - draw() / 2.0);
        let pause_until = Some(now.boot.after(pause));
        self.issues_in_vain = IssuesInVain { count, pace: Some(pace), since: Some(now.wall), pause_until };
    }

    /// A moment in the window of its lifetime; of what is left, where it was issued late in it: or each renewal would ask
    /// for the next.
    fn draw_renewal_from_now_on(&self, facts: &SvidFacts, now: Now, draw: Draw<'_>) -> Timestamp {
        let renew_at = self.draw_renewal(facts.not_before, facts, draw);
        if renew_at <= now.wall { self.draw_renewal(now.wall, facts, draw) } else { renew_at }
    }

    /// A moment in the window of the time from `from` to the end of the SVID (miaf-v0 R2).
    pub(super) fn draw_renewal(&self, from: Timestamp, facts: &SvidFacts, draw: Draw<'_>) -> Timestamp {
        let (opens, closes) = self.policy.window;
        part_way(from, facts.not_after, opens + (closes - opens) * draw())
    }

    /// When renewals are drawn for an SVID like the one held, as long as nothing brings them forward.
    pub fn renewal_window(&self) -> Option<(Timestamp, Timestamp)> {
        let SvidFacts { not_before, not_after, .. } = self.svid.as_ref()?.facts;
        let (opens, closes) = self.policy.window;
        Some((part_way(not_before, not_after, opens), part_way(not_before, not_after, closes)))
    }
}

fn part_way(from: Timestamp, to: Timestamp, fraction: f64) -> Timestamp {
    from.after(from.until(to).mul_f64(fraction))
}

/// Up to a fifth earlier than agreed, at random: a fleet that was switched on in one second drifts apart.
fn spread(interval: Duration, draw: Draw<'_>) -> Duration {
    interval.mul_f64(1.0 - draw() / 5.0)
}
