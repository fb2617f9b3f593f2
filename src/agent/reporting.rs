//! Failures as the lifecycle knows them, and what is logged of them.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::time::Duration;

use tracing::field::DisplayValue;

use super::identity::Identity;
use crate::config::WhenStale;
use crate::hint::Hint;
use crate::keys::KeyError;
use crate::lifecycle::{
    Event, Failure, FailureKind, IdentityEvent, IdentityIndex, LONGEST_RETRY_AFTER, NotAdopted, TimeVerdict,
};
use crate::platform::systemd;
use crate::problem::{ProblemCode, Report, remedy};
use crate::publish::{CurrentBundle, IdentitySnapshot, ShownError, Snapshot};
use crate::state::StoreError;
use miaf_client::api::{IdentityName, State, Word as _};
use miaf_spiffe::svid::{self, X509Svid};
use miaf_spiffe::text::Excerpt;
use miaf_spiffe::time::Timestamp;
use miaf_spiffe::{AnchorFacts, BundleContent, MaybeNamedBundle};

/// How long the MIS may hold a renewal before that is an error (X section 12).
const HELD_RENEWAL: Duration = Duration::from_secs(10 * 60);
/// Characters of a cause in a log message.
const MAX_CAUSE: usize = 2048;

/// The text of an error for a log message: a journal that is read as lines shows no fields.
pub(super) fn cause(e: &dyn Display) -> Excerpt {
    Excerpt::of(e, MAX_CAUSE)
}

/// The hint of an error as a field of a log event.
pub(super) fn hint(e: &impl Hint) -> Option<DisplayValue<Cow<'_, str>>> {
    e.hint().map(tracing::field::display)
}

/// Failure of something on this device.
pub(super) fn local(code: ProblemCode, title: &str, why: &dyn Display) -> Failure {
    local_failure(Report::new(code, title, why))
}

pub(super) fn local_failure(report: Report) -> Failure {
    Failure { kind: FailureKind::Local, retry_after: None, report }
}

/// The state cannot be written.
pub(super) fn state_failure(e: &StoreError) -> Failure {
    local_failure(Report::of(ProblemCode::State, "The agent's state cannot be written", e))
}

pub(super) fn key_failure(e: &KeyError) -> Failure {
    let code = if e.is_too_weak() { ProblemCode::KeyTooWeak } else { ProblemCode::Key };
    local_failure(Report::of(code, "The key cannot be used", e))
}

/// The current key cannot be used. One that is lost is reported as such. `operator_hint` is what an
/// operator does for the next SVID, where that is an operator's task.
pub(super) fn current_key_failure(e: &KeyError, operator_hint: Option<String>) -> Failure {
    if !e.is_of_a_lost_key() {
        return key_failure(e);
    }
    let report = Report::of(ProblemCode::KeyLost, "The key of this identity is lost", e);
    let report = match operator_hint {
        None => report.with_consequence(
            "The agent tries the key again every hour, and enrolls with a new one by itself when the identity has expired",
        ),
        Some(hint) => {
            report.with_consequence("The agent tries the key again every hour").with_hint(Some(hint))
        }
    };
    Failure { kind: FailureKind::CurrentKeyLost, retry_after: None, report }
}

/// What was logged last of each kind of work. A device that is offline for a month logs that once,
/// not ten thousand times.
#[derive(Debug, Default)]
pub(super) struct Reporter {
    discovery: Option<Report>,
    bundle: Option<Report>,
    requests: BTreeMap<IdentityIndex, Option<Report>>,
    keys: BTreeMap<IdentityIndex, Option<Report>>,
    files: BTreeMap<IdentityIndex, Report>,
    anchors: Vec<String>,
    time_in_doubt: bool,
    bundle_is_stale: bool,
    gaps_ahead: BTreeSet<IdentityName>,
    token_needed_after: BTreeMap<IdentityName, Timestamp>,
    /// Since when the MIS has held the renewal of an identity, and whether that was reported.
    held_renewals: BTreeMap<IdentityName, (Timestamp, bool)>,
    records: BTreeMap<(Option<IdentityName>, &'static str), String>,
    /// The state of each identity, and whether its operator has little time left.
    states: BTreeMap<IdentityName, (State, bool)>,
    /// Errors that are the outcome of no action: of the device, and of each identity.
    found: BTreeMap<Option<IdentityName>, Option<Report>>,
}

impl Reporter {
    /// Logs a failure that is news, in whole, `instance` included (miaf-v0 P3).
    pub(super) fn report_outcome(&mut self, event: &Event, identities: &[Identity]) {
        let identity = match event {
            Event::Identity(index, _) => identities.get(index.0).map(|identity| identity.name.as_str()),
            _ => None,
        };
        let (logged, failure) = match event {
            Event::Wake | Event::Command(_) | Event::Supplied(..) | Event::BundleFileChanged => return,
            Event::Discovery(outcome) => (&mut self.discovery, outcome.as_ref().err()),
            Event::Bundle(outcome) => (&mut self.bundle, outcome.as_ref().err()),
            Event::Identity(index, event) => match event {
                // Not the end of anything: only an adopted SVID shows that what failed before is
                // over.
                IdentityEvent::KeyCreated(Ok(()))
                | IdentityEvent::Issued(Ok(()))
                | IdentityEvent::Adopted(Err(NotAdopted::Early(_) | NotAdopted::UnknownIssuer)) => return,
                IdentityEvent::KeyProven(outcome) => {
                    (self.keys.entry(*index).or_default(), outcome.as_ref().err())
                }
                IdentityEvent::KeyCreated(Err(failure))
                | IdentityEvent::Issued(Err(failure))
                | IdentityEvent::Adopted(Err(
                    NotAdopted::IssuerExpired(failure)
                    | NotAdopted::NoPath(failure)
                    | NotAdopted::Kept(failure)
                    | NotAdopted::Refused(failure),
                )) => (self.requests.entry(*index).or_default(), Some(failure)),
                IdentityEvent::Adopted(Ok(_)) => (self.requests.entry(*index).or_default(), None),
            },
        };
        let Some(Failure { report, retry_after, .. }) = failure else {
            *logged = None;
            return;
        };
        let name = identity.filter(|_| identities.len() > 1);
        let (code, hint, what) = (report.code.as_str(), report.hint_about(name), report.message());
        let hint = hint.as_deref();
        if logged.as_ref() == Some(report) {
            tracing::debug!(identity, code, ?retry_after, "again: {what}");
            return;
        }
        let response = report.response.as_ref();
        let status = response.map(|response| response.status);
        let problem_type = response.and_then(|response| response.kind.as_deref());
        let instance = response.and_then(|response| response.instance.as_deref());
        tracing::warn!(identity, code, hint, problem_type, status, instance, ?retry_after, "{what}");
        if retry_after.is_some_and(|wait| wait > LONGEST_RETRY_AFTER) {
            tracing::warn!(
                "the Retry-After delay of the MIS is longer than 7 days; the agent sends the next request after 7 days"
            );
        }
        *logged = Some(report.clone());
    }

    /// Logs what is wrong with a bundle that is in use, if it is news: parts of it that are not
    /// used, and anchors that some peers refuse now because of their validity.
    pub(super) fn report_anchors(
        &mut self,
        bundle: &MaybeNamedBundle,
        identities: &[Identity],
        now: Timestamp,
    ) {
        let warnings = anchor_warnings(bundle, identities, now);
        for warning in warnings.iter().filter(|warning| !self.anchors.contains(warning)) {
            let trust_domain = bundle.trust_domain().map(tracing::field::display);
            tracing::warn!(trust_domain, "the trust bundle: {warning}");
        }
        self.anchors = warnings;
    }

    /// Tells the service manager what has changed in the states of the identities, and logs it.
    pub(super) fn report_snapshot(&mut self, snapshot: &Snapshot, now: Timestamp) {
        let mut is_news = false;
        self.report_staleness(snapshot.bundle.as_ref(), now);
        self.report_found(None, [snapshot.last_error.as_ref(), None], snapshot);
        for identity in snapshot.identities() {
            self.report_retry_after(identity);
            is_news |= self.report_need_of_token(identity, snapshot);
            self.report_held_renewal(identity, now);
            let errors = [identity.last_error.as_ref(), identity.untrusted.as_ref()];
            self.report_found(Some(&identity.name), errors, snapshot);
            is_news |= self.report_state(identity, snapshot, now);
        }
        if is_news {
            systemd::status(&status_line(snapshot));
        }
    }

    /// Warns of a bundle that has become stale, once until it has been refreshed.
    fn report_staleness(&mut self, current: Option<&CurrentBundle>, now: Timestamp) {
        let stale = current.filter(|current| current.is_stale(now));
        let was_stale = std::mem::replace(&mut self.bundle_is_stale, stale.is_some());
        match stale {
            Some(stale) if !was_stale => {
                let code = ProblemCode::BundleStale;
                let consequence = match stale.when_stale {
                    WhenStale::Serve => "it is served all the same",
                    WhenStale::Withdraw => {
                        "the sockets hand out neither SVIDs nor the bundle until it is refreshed"
                    }
                };
                tracing::warn!(
                    code = code.as_str(),
                    hint = remedy(code),
                    "the trust bundle is older than bundle.max_age: it was last known to be current at {}; {consequence}",
                    stale.fetched_at
                );
            }
            None if was_stale && current.is_some() => {
                tracing::info!("the trust bundle is current again");
            }
            _ => {}
        }
    }

    /// Reports, once, a renewal that the MIS holds for long: a renewal waits for no operator (X71), so
    /// something is wrong there.
    fn report_held_renewal(&mut self, identity: &IdentitySnapshot, now: Timestamp) {
        let held = identity.last_error.as_ref().filter(|(error, _)| {
            identity.current.is_some() && error.report.code == ProblemCode::PendingAdmission
        });
        let Some((error, _)) = held else {
            self.held_renewals.remove(&identity.name);
            return;
        };
        let (since, is_told) = self.held_renewals.entry(identity.name.clone()).or_insert((now, false));
        if !*is_told && since.until(now) >= HELD_RENEWAL {
            *is_told = true;
            tracing::error!(
                identity = identity.name.as_str(),
                code = error.report.code.as_str(),
                "the MIS has held the renewal since {since}, and a renewal waits for no operator: {}",
                error.report.message()
            );
        }
    }

    /// Tells, once, that an operator will be needed unless a renewal succeeds soon (X69). Returns whether
    /// that, or its end, is news.
    fn report_need_of_token(&mut self, identity: &IdentitySnapshot, snapshot: &Snapshot) -> bool {
        let before = self.token_needed_after.remove(&identity.name);
        let Some(ends) = identity.needs_token_after() else { return before.is_some() };
        self.token_needed_after.insert(identity.name.clone(), ends);
        if before == Some(ends) {
            return false;
        }
        let code = ProblemCode::TokenNeeded;
        let report = Report::new(code, "", &"").with_hint(identity.fresh_token.clone());
        let hint = report.hint_about(snapshot.name_in_hints(Some(&identity.name)));
        tracing::error!(
            identity = identity.name.as_str(),
            code = code.as_str(),
            hint = hint.as_deref(),
            "the renewal still fails, and the SVID ends at {ends}: from then on this identity needs a fresh enrollment token"
        );
        true
    }

    /// Logs an error that is the outcome of no action, but found in what there is.
    fn report_found(
        &mut self,
        identity: Option<&IdentityName>,
        errors: [Option<&ShownError>; 2],
        snapshot: &Snapshot,
    ) {
        const FOUND: [ProblemCode; 3] =
            [ProblemCode::BundleEmpty, ProblemCode::SvidNotTrusted, ProblemCode::IssuanceStalled];
        let mut reports = errors.into_iter().flatten().map(|(error, _)| &error.report);
        let found = reports.find(|report| FOUND.iter().any(|code| report.code == *code));
        let logged = self.found.entry(identity.cloned()).or_default();
        if let Some(report) = found.filter(|report| logged.as_ref() != Some(*report)) {
            let (code, hint) = (report.code.as_str(), report.hint_about(snapshot.name_in_hints(identity)));
            let identity = identity.map(IdentityName::as_str);
            tracing::error!(identity, code, hint = hint.as_deref(), "{}", report.message());
        }
        *logged = found.cloned();
    }

    /// Returns whether the state is news.
    fn report_state(&mut self, identity: &IdentitySnapshot, snapshot: &Snapshot, now: Timestamp) -> bool {
        let (name, state) = (identity.name.as_str(), identity.state);
        // What an operator has not done at half of the lifetime is urgent near its end.
        let ends = identity.current.as_ref().map(|current| current.svid.until());
        let waits = matches!(state, State::WaitingForOperator | State::WaitingForToken);
        let is_urgent =
            waits && identity.current.as_ref().is_some_and(|current| last_tenth(&current.svid) <= now);
        let shown = (state, is_urgent);
        if self.states.insert(identity.name.clone(), shown) == Some(shown) {
            return false;
        }
        match state {
            State::Blocked
            | State::Expired
            | State::WaitingForClock
            | State::WaitingForOperator
            | State::WaitingForToken => {
                let blocks = |shown: &&ShownError| shown.0.permanent;
                let (own, shared) = (identity.last_error.as_ref(), snapshot.last_error.as_ref());
                let error = own.filter(blocks).or(shared.filter(blocks)).or(own).or(shared);
                let report = error.map(|(error, _)| &error.report);
                let why = report.map(|report| format!(": {}", report.message())).unwrap_or_default();
                let code = report.map(|report| report.code.as_str());
                let name = snapshot.name_in_hints(Some(&identity.name));
                let hint = report.and_then(|report| report.hint_about(name));
                let (hint, state_word, meaning) = (hint.as_deref(), state.as_str(), state.meaning());
                match ends.filter(|_| is_urgent) {
                    Some(ends) => tracing::error!(
                        identity = name,
                        state = state_word,
                        code,
                        hint,
                        "{state}: {meaning}: less than a tenth of the lifetime is left, until {ends}"
                    ),
                    None if waits => {
                        tracing::warn!(
                            identity = name,
                            state = state_word,
                            code,
                            hint,
                            "{state}: {meaning}{why}"
                        );
                    }
                    None => {
                        tracing::error!(
                            identity = name,
                            state = state_word,
                            code,
                            hint,
                            "{state}: {meaning}{why}"
                        );
                    }
                }
            }
            _ => tracing::info!(identity = name, state = state.as_str(), "{state}: {}", state.meaning()),
        }
        true
    }

    /// Logs that the time which the MIS shows is not trusted at once, if that is news.
    pub(super) fn report_time(&mut self, verdict: TimeVerdict, time: Timestamp, wall: Timestamp) {
        let in_doubt = verdict == TimeVerdict::Doubted;
        if in_doubt && !std::mem::replace(&mut self.time_in_doubt, in_doubt) {
            tracing::warn!(
                "the MIS shows the time {time}, and this device's clock {wall}: the time is requested again before anything \
                 follows from that"
            );
        }
        self.time_in_doubt = in_doubt;
    }

    /// Warns of a Retry-After delay that lasts longer than the SVID.
    fn report_retry_after(&mut self, identity: &IdentitySnapshot) {
        let ends = identity.current.as_ref().map(|current| current.svid.until());
        let waits = identity.retry_after_until.zip(ends).filter(|_| identity.ends_while_waiting);
        let Some((until, ends)) = waits else {
            self.gaps_ahead.remove(&identity.name);
            return;
        };
        if self.gaps_ahead.insert(identity.name.clone()) {
            tracing::warn!(
                identity = identity.name.as_str(),
                hint = "Ask the operator of the MIS to raise the limit that this device has met",
                "the Retry-After delay of the MIS ends at {until}, and the identity at {ends}: in between there is none, \
                 and none may be requested earlier"
            );
        }
    }

    /// Logs that a record could not be saved and what follows from it, if it is news.
    pub(super) fn report_record(
        &mut self,
        identity: Option<&IdentityName>,
        name: &'static str,
        failure: Option<&StoreError>,
        consequence: &str,
    ) {
        let key = (identity.cloned(), name);
        let is_news = self.is_news_of_record(key, failure.map(|e| e.with_hint().to_string()));
        if let Some(e) = failure.filter(|_| is_news) {
            let (code, identity) = (ProblemCode::State.as_str(), identity.map(IdentityName::as_str));
            tracing::warn!(identity, code, hint = hint(e), "{consequence}: {}", cause(e));
        }
    }

    /// Whether there is a failure that has not been logged already.
    fn is_news_of_record(
        &mut self,
        key: (Option<IdentityName>, &'static str),
        failure: Option<String>,
    ) -> bool {
        let Some(failure) = failure else {
            self.records.remove(&key);
            return false;
        };
        self.records.insert(key, failure.clone()) != Some(failure)
    }

    /// Logs a failure to publish the files, if it is news.
    pub(super) fn report_files(
        &mut self,
        index: IdentityIndex,
        name: &IdentityName,
        has_several: bool,
        failure: Option<&Report>,
    ) {
        let Some(report) = failure else {
            self.files.remove(&index);
            return;
        };
        if self.files.insert(index, report.clone()).as_ref() != Some(report) {
            tracing::error!(
                identity = name.as_str(),
                code = report.code.as_str(),
                hint = report.hint_about(has_several.then_some(name.as_str())).as_deref(),
                "{}. What was published before is untouched",
                report.message()
            );
        }
    }
}

/// The line for `systemctl status`: state and name of one identity, or the states of several, with
/// the names of those that are not active; and the first moment after which an enrollment token is
/// needed, while renewals fail.
fn status_line(snapshot: &Snapshot) -> String {
    /// Names of one state that are shown.
    const MAX_NAMES: usize = 3;
    if snapshot.other_identities.is_empty() {
        let identity = &snapshot.default_identity;
        let spiffe_id = identity.current.as_ref().map(|current| format!(": {}", current.svid.spiffe_id()));
        return format!(
            "{}{}{}",
            identity.state,
            spiffe_id.unwrap_or_default(),
            token_needed_after(snapshot)
        );
    }
    let of_state = |state: &State| {
        let names = snapshot.identities().filter(|identity| identity.state == *state);
        let names: Vec<_> = names.map(|identity| identity.name.as_str()).collect();
        let (shown, others) = names.split_at(names.len().min(MAX_NAMES));
        let more = if others.is_empty() { String::new() } else { format!(", and {} more", others.len()) };
        match names.len() {
            0 => None,
            all if *state == State::Active => Some(format!("{all} {state}")),
            all => Some(format!("{all} {state} ({}{more})", shown.join(", "))),
        }
    };
    let states: Vec<_> = State::ALL.iter().filter_map(of_state).collect();
    let (all, states) = (snapshot.identities().count(), states.join(", "));
    format!("{all} identities: {states}{}", token_needed_after(snapshot))
}

/// What the line for `systemctl status` says of identities whose renewal fails near their end.
fn token_needed_after(snapshot: &Snapshot) -> String {
    let near =
        snapshot.identities().filter_map(|identity| Some((identity.needs_token_after()?, &identity.name)));
    let first = near.min();
    first.map(|(ends, name)| format!("; {name} needs an enrollment token after {ends}")).unwrap_or_default()
}

/// When the last tenth of an SVID's lifetime begins.
pub(super) fn last_tenth(svid: &X509Svid) -> Timestamp {
    let lifetime = svid.not_before().until(svid.until());
    svid.not_before().after(lifetime - lifetime / 10)
}

fn anchor_warnings(bundle: &BundleContent, identities: &[Identity], now: Timestamp) -> Vec<String> {
    let current = identities.iter().filter_map(|identity| identity.current.as_deref());
    let vouching = current.filter_map(|current| svid::trust_path(&current.svid, bundle, now));
    let vouching: Vec<_> = vouching.map(|vouching| vouching.anchor).collect();
    let of_anchor = |facts: &AnchorFacts| {
        let when = match now < facts.not_before {
            true => format!("becomes valid only at {}", facts.not_before),
            false => format!("expired at {}", facts.not_after),
        };
        let consequence = if vouching.contains(&facts) {
            ": no other leads to this device's SVID, so peers that use OpenSSL refuse it"
        } else {
            ""
        };
        format!("its anchor \"{}\" {when}{consequence}", facts.subject)
    };
    let remarks = bundle.warnings().iter().map(ToString::to_string);
    remarks.chain(bundle.anchors_out_of_validity(now).map(of_anchor)).collect()
}

/// The last message of one matter: what is found again and again is logged once.
#[derive(Debug, Default)]
pub(super) struct RepeatFilter(Option<String>);

impl RepeatFilter {
    /// Whether this is another message than the last.
    pub(super) fn is_news(&mut self, message: &str) -> bool {
        self.0.replace(message.to_owned()).as_deref() != Some(message)
    }

    /// Forgets the last message: the matter is settled.
    pub(super) fn is_over(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::ProviderKind;
    use crate::problem::LastError;

    const DEVICE: IdentityIndex = IdentityIndex(0);

    #[test]
    fn repeated_message_is_news_once() {
        let mut complaint = RepeatFilter::default();
        assert!(complaint.is_news("a") && !complaint.is_news("a"));
        assert!(complaint.is_news("b") && complaint.is_news("a"));
        complaint.is_over();
        assert!(complaint.is_news("a"));
    }

    #[test]
    fn store_failure_is_logged_once_until_it_changes() {
        let mut reporter = Reporter::default();
        let mut said = |record, failure: Option<&str>| {
            reporter.is_news_of_record((None, record), failure.map(str::to_owned))
        };
        assert!(said("time.json", Some("disk full")));
        assert!(!said("time.json", Some("disk full")), "after the next step");
        assert!(said("retry-after.json", Some("disk full")), "another record");
        assert!(said("time.json", Some("read-only")), "another reason");
        assert!(!said("time.json", None));
        assert!(said("time.json", Some("read-only")), "it could be stored in between");
    }

    /// `journalctl` shows no fields, so what went wrong is in the message. No event of the agent
    /// that asks for action has its cause in a field.
    #[test]
    fn warnings_and_errors_have_their_cause_in_the_message() {
        const CAUSES: [&str; 7] = ["error", "why", "detail", "problem", "reason", "cause", "failure"];
        let mut events = 0;
        let mut dirs = vec![std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src")];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
                let path = entry.path();
                if path.is_dir() {
                    dirs.push(path);
                    continue;
                }
                let source = std::fs::read_to_string(&path).unwrap();
                let starts = ["warn!(", "error!("].map(|name| format!("tracing::{name}"));
                for at in starts.iter().flat_map(|start| source.match_indices(start.as_str())) {
                    let rest = &source[at.0 + at.1.len()..];
                    let fields = &rest[..rest.find('"').unwrap_or(0)]; // the message is the first literal
                    let named = fields.split(',').filter_map(|field| field.split('=').next());
                    let named: Vec<_> =
                        named.map(|name| name.trim().trim_start_matches(['%', '?'])).collect();
                    events += 1;
                    let cause = named.iter().find(|name| CAUSES.contains(name));
                    assert_eq!(cause, None, "{}: a cause is in a field: {fields}", path.display());
                }
            }
        }
        assert!(events > 30, "the agent's events are not found any more: {events}");
    }

    #[test]
    fn failure_is_logged_with_its_reason_in_the_message() {
        let events = Captured::default();
        let _guard = tracing::subscriber::set_default(Capturing(events.clone()));
        let mut reporter = Reporter::default();
        let reason = format!("the disk is full\x1b[31m{}", "x".repeat(100_000));
        let failure = local(ProblemCode::State, "The agent's state cannot be written", &reason);
        let event = Event::Identity(DEVICE, IdentityEvent::KeyCreated(Err(failure.clone())));
        reporter.report_outcome(&event, &[]);
        reporter.report_files(DEVICE, &IdentityName::DEVICE, false, Some(&failure.report));
        let events = events.0.lock().unwrap();
        assert_eq!(events.len(), 2);
        for message in events.iter() {
            assert!(
                message.contains(" The agent's state cannot be written: the disk is full"),
                "{message:.200}"
            );
            assert!(!message.contains('\x1b') && message.len() < 10_000, "{}", message.len());
        }
    }

    fn snapshot(states: &[State]) -> Snapshot {
        let mut snapshot = Snapshot::unconfigured(ProviderKind::Tpm);
        let identity = |(nth, state): (usize, &State)| {
            let name = IdentityName::parse(&format!("client-{nth}")).unwrap();
            IdentitySnapshot {
                enroll: Some("manual"),
                ..IdentitySnapshot::empty(name, *state, ProviderKind::Tpm)
            }
        };
        let mut identities = states.iter().enumerate().map(identity);
        snapshot.default_identity = identities.next().unwrap();
        snapshot.other_identities = identities.collect();
        snapshot
    }

    #[test]
    fn status_line_is_short_with_several_identities() {
        use State::{Active, Blocked, WaitingForOperator};
        assert_eq!(status_line(&snapshot(&[Active])), "active");
        assert_eq!(
            status_line(&snapshot(&[Active, WaitingForOperator, Active, Blocked])),
            "4 identities: 1 waiting-for-operator (client-1), 2 active, 1 blocked (client-3)"
        );
        assert_eq!(
            status_line(&snapshot(&[WaitingForOperator; 16])),
            "16 identities: 16 waiting-for-operator (client-0, client-1, client-2, and 13 more)"
        );
    }

    #[test]
    fn status_line_says_when_a_token_will_be_needed() {
        let est = |after: Option<&str>| miaf_client::api::EstStatus {
            url: None,
            url_source: None,
            authorization: miaf_client::api::EstAuthorization::Token.into(),
            token_source: None,
            has_token: false,
            token_needed: false,
            token_needed_after: after.map(|after| Timestamp::from_rfc3339(after).unwrap()),
            certificate: None,
            tls12_allowed: false,
            standardized: true,
        };
        let mut of_one = snapshot(&[State::Renewing]);
        of_one.default_identity.est = Some(est(Some("2026-01-03T00:00:00Z")));
        let line = "renewing; client-0 needs an enrollment token after 2026-01-03T00:00:00Z";
        assert_eq!(status_line(&of_one), line);
        let mut of_two = snapshot(&[State::Renewing, State::Renewing, State::Active]);
        of_two.default_identity.est = Some(est(Some("2026-01-03T00:00:00Z")));
        of_two.other_identities[0].est = Some(est(Some("2026-01-02T00:00:00Z")));
        of_two.other_identities[1].est = Some(est(None));
        assert_eq!(
            status_line(&of_two),
            "3 identities: 1 active, 2 renewing (client-0, client-1); client-1 needs an enrollment token after \
             2026-01-02T00:00:00Z"
        );
        // Once at its beginning, and once at its end.
        let mut reporter = Reporter::default();
        let mut is_news =
            |snapshot: &Snapshot| reporter.report_need_of_token(&snapshot.default_identity, snapshot);
        assert!(is_news(&of_one) && !is_news(&of_one));
        of_one.default_identity.est = Some(est(None));
        assert!(is_news(&of_one) && !is_news(&of_one));
    }

    /// An SVID of ten days from the beginning of 2026, and its key, which is sealed in a directory.
    fn ten_days_from_2026(directory: &std::path::Path) -> crate::publish::SvidAndKey {
        let keys = crate::keys::software::Software::new(None, directory.join("kek"));
        let mut params = rcgen::CertificateParams::default();
        let uri = "spiffe://factory.example/margo/wfm/w/client/c".try_into().unwrap();
        params.subject_alt_names.push(rcgen::SanType::URI(uri));
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 1, 11); // a tenth is a day
        let der = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().clone();
        let svid = X509Svid::from_stored(svid::Chain::from_der(&[der]).unwrap()).unwrap();
        let key = std::sync::Arc::new(keys.create_key().unwrap());
        crate::publish::SvidAndKey { svid, key, credential: None }
    }

    #[test]
    fn held_renewal_is_an_error_after_ten_minutes() {
        let directory = tempfile::tempdir().unwrap();
        let events = Captured::default();
        let _guard = tracing::subscriber::set_default(Capturing(events.clone()));
        let mut reporter = Reporter::default();
        let begin = Timestamp::from_rfc3339("2026-01-05T00:00:00Z").unwrap();
        let held = |identity: &mut IdentitySnapshot, at: Timestamp| {
            let report = Report::new(ProblemCode::PendingAdmission, "The MIS holds the request", &"202");
            identity.last_error = Some((LastError { report, at, permanent: false }, None));
        };
        // After so many seconds, and how many errors are logged then.
        let mut errors_after = |snapshot: &mut Snapshot, is_held: bool, seconds: u64| {
            let at = begin.after(Duration::from_secs(seconds));
            snapshot.default_identity.last_error = None;
            if is_held {
                held(&mut snapshot.default_identity, at);
            }
            reporter.report_snapshot(snapshot, at);
            let logged = std::mem::take(&mut *events.0.lock().unwrap());
            logged.iter().filter(|line| line.starts_with("ERROR the MIS has held the renewal since ")).count()
        };
        let mut first = snapshot(&[State::PendingAdmission]);
        assert_eq!(errors_after(&mut first, true, 0), 0);
        assert_eq!(errors_after(&mut first, true, 3600), 0, "a first enrollment may wait for its operator");
        assert_eq!(errors_after(&mut first, false, 3601), 0);
        let mut renewing = snapshot(&[State::Renewing]);
        renewing.default_identity.current = Some(std::sync::Arc::new(ten_days_from_2026(directory.path())));
        for (is_held, seconds, errors) in [
            (true, 4000, 0),
            (true, 4599, 0),
            (true, 4600, 1),
            (true, 9000, 0),  // once
            (false, 9001, 0), // it is over
            (true, 9002, 0),
            (true, 9601, 0),
            (true, 9602, 1),
        ] {
            assert_eq!(errors_after(&mut renewing, is_held, seconds), errors, "after {seconds} s");
        }
    }

    /// A device that waits for its first certificate is no fault of anything. It becomes one as the
    /// end of a certificate comes near that is not replaced.
    #[test]
    fn operator_is_asked_by_a_warning_and_near_the_end_by_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let current = ten_days_from_2026(directory.path());
        let events = Captured::default();
        let _guard = tracing::subscriber::set_default(Capturing(events.clone()));
        let mut reporter = Reporter::default();
        let now = Timestamp::from_rfc3339("2026-01-01T00:00:00Z").unwrap();
        let hour = |hours: u32| now.after(std::time::Duration::from_secs(3600) * hours);
        let mut seen = |snapshot: &Snapshot, now: Timestamp| {
            reporter.report_snapshot(snapshot, now);
            std::mem::take(&mut *events.0.lock().unwrap())
        };
        let mut waiting = snapshot(&[State::WaitingForOperator, State::Active]);
        let first = seen(&waiting, now);
        assert_eq!(first.len(), 2, "{first:?}");
        assert!(first[0].starts_with("WARN waiting-for-operator: "), "{first:?}");
        assert!(seen(&waiting, hour(1)).is_empty(), "once");

        waiting.default_identity.current = Some(std::sync::Arc::new(current));
        waiting.default_identity.state = State::Active;
        assert!(seen(&waiting, hour(2))[0].starts_with("INFO active: "));
        waiting.default_identity.state = State::WaitingForOperator;
        assert!(seen(&waiting, hour(5 * 24))[0].starts_with("WARN waiting-for-operator: "));
        assert!(seen(&waiting, hour(9 * 24 - 1)).is_empty());
        let urgent = seen(&waiting, hour(9 * 24));
        assert!(urgent[0].starts_with("ERROR waiting-for-operator: "), "{urgent:?}");
        assert!(
            urgent[0].ends_with("a tenth of the lifetime is left, until 2026-01-11T00:00:00Z"),
            "{urgent:?}"
        );
        assert!(seen(&waiting, hour(9 * 24 + 1)).is_empty());
        waiting.default_identity.state = State::Expired;
        assert!(seen(&waiting, hour(10 * 24 + 1))[0].starts_with("ERROR expired: "));
        assert!(seen(&waiting, hour(10 * 24 + 2)).is_empty());
    }

    /// Level and message of events, without their fields.
    #[derive(Clone, Default)]
    struct Captured(std::sync::Arc<std::sync::Mutex<Vec<String>>>);

    struct Capturing(Captured);

    impl tracing::Subscriber for Capturing {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }
        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn event(&self, event: &tracing::Event<'_>) {
            struct Message(String);
            impl tracing::field::Visit for Message {
                fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                    if field.name() == "message" {
                        self.0 = format!("{value:?}");
                    }
                }
            }
            let mut message = Message(String::new());
            event.record(&mut message);
            self.0.0.lock().unwrap().push(format!("{} {}", event.metadata().level(), message.0));
        }
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }
}
