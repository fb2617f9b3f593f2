//! Failures as the lifecycle knows them, and what is logged of them.

use std::collections::BTreeMap;
use std::fmt::Display;

use super::identity::Identity;
use crate::hint::Hint as _;
use crate::keys::KeyError;
use crate::lifecycle::{
    Event, Failure, FailureKind, IdentityEvent, IdentityIndex, LONGEST_RETRY_AFTER, NotAdopted, State,
    TimeVerdict,
};
use crate::platform::systemd;
use crate::problem::Report;
use crate::publish::Snapshot;
use crate::state::StoreError;
use miaf_spiffe::svid;
use miaf_spiffe::text::Excerpt;
use miaf_spiffe::time::Timestamp;
use miaf_spiffe::{AnchorFacts, Bundle};

/// Characters of a cause in a log message.
const MAX_CAUSE: usize = 2048;

/// The text of an error for a log message: a journal that is read as lines shows no fields.
pub(super) fn cause(e: &dyn Display) -> Excerpt {
    Excerpt::of(e, MAX_CAUSE)
}

/// The error with its reason, for a log message.
fn in_a_line(report: &Report) -> Excerpt {
    match &report.detail {
        Some(detail) => cause(&format_args!("{}: {detail}", report.title)),
        None => cause(&report.title),
    }
}

/// Failure of something on this device.
pub(super) fn local(code: &str, title: &str, why: &dyn Display) -> Failure {
    Failure { kind: FailureKind::Local, retry_after: None, report: Report::of_agent(code, title, why) }
}

pub(super) fn key_failure(e: &KeyError) -> Failure {
    local("key", "The key cannot be used", e)
}

/// The current key cannot be used. One that is lost is reported as such.
pub(super) fn current_key_failure(e: &KeyError) -> Failure {
    if !e.is_of_a_lost_key() {
        return key_failure(e);
    }
    // What to do is the hint's, once: see the command line.
    let why = format!(
        "{}. The agent tries the key again every hour, and enrolls with a new one by itself when the identity has expired",
        e.detail()
    );
    Failure { kind: FailureKind::CurrentKeyLost, ..local("key-lost", "The key of this device is lost", &why) }
}

/// What was logged last of each kind of work. A device that is offline for a month logs that once, not ten thousand times.
#[derive(Debug, Default)]
pub(super) struct Reporter {
    discovery: Option<Report>,
    bundle: Option<Report>,
    requests: BTreeMap<IdentityIndex, Option<Report>>,
    keys: BTreeMap<IdentityIndex, Option<Report>>,
    files: Option<Report>,
    anchors: Vec<String>,
    time_in_doubt: bool,
    gap_ahead: bool,
    records: BTreeMap<&'static str, String>,
    state: Option<State>,
}

impl Reporter {
    /// Logs a failure that is news, in whole, `instance` included (miaf-v0 P3).
    pub(super) fn report_outcome(&mut self, event: &Event) {
        let (logged, failure) = match event {
            Event::Wake | Event::Command(_) => return,
            Event::Discovery(outcome) => (&mut self.discovery, outcome.as_ref().err()),
            Event::Bundle(outcome) => (&mut self.bundle, outcome.as_ref().err()),
            Event::Identity(index, event) => match event {
                // Not the end of anything: only an adopted SVID shows that what failed before is over.
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
        let Report { kind, status, instance, .. } = report;
        let what = in_a_line(report);
        if logged.as_ref() == Some(report) {
            tracing::debug!(problem_type = kind, status, instance, ?retry_after, "again: {what}");
            return;
        }
        tracing::warn!(problem_type = kind, status, instance, ?retry_after, "{what}");
        if retry_after.is_some_and(|wait| wait > LONGEST_RETRY_AFTER) {
            tracing::warn!("the MIS asked for a wait of more than 7 days; the agent asks again after 7 days");
        }
        *logged = Some(report.clone());
    }

    /// Logs what is wrong with a bundle that is in use, if it is news: parts of it that are not used, and anchors that
    /// some peers refuse now because of their validity.
    pub(super) fn report_anchors(&mut self, bundle: &Bundle, identities: &[Identity], now: Timestamp) {
        let warnings = anchor_warnings(bundle, identities, now);
        for warning in warnings.iter().filter(|warning| !self.anchors.contains(warning)) {
            tracing::warn!(trust_domain = %bundle.trust_domain(), "the trust bundle: {warning}");
        }
        self.anchors = warnings;
    }

    /// Tells the service manager the state, and logs it, if it is news.
    pub(super) fn report_state(&mut self, snapshot: &Snapshot) {
        let state = snapshot.state;
        if self.state.replace(state) == Some(state) {
            return;
        }
        let spiffe_id = snapshot.identity.as_ref().map(|identity| format!(": {}", identity.svid.spiffe_id()));
        systemd::status(&format!("{state}{}", spiffe_id.unwrap_or_default()));
        match state {
            State::Blocked | State::Expired => {
                let error = snapshot.last_error.as_ref();
                let why = error.map(|(error, _)| format!(": {}", in_a_line(&error.report)));
                let why = why.unwrap_or_default();
                tracing::error!(state = state.as_str(), "{state}: {}{why}", state.meaning());
            }
            _ => tracing::info!(state = state.as_str(), "{state}: {}", state.meaning()),
        }
    }

    /// Logs that the time which the MIS shows is not trusted at once, if that is news.
    pub(super) fn report_time(&mut self, verdict: TimeVerdict, time: Timestamp, wall: Timestamp) {
        let in_doubt = verdict == TimeVerdict::Doubted;
        if in_doubt && !std::mem::replace(&mut self.time_in_doubt, in_doubt) {
            tracing::warn!(
                "the MIS shows the time {time}, and this device's clock {wall}: the MIS is asked again before anything \
                 follows from that"
            );
        }
        self.time_in_doubt = in_doubt;
    }

    /// Warns of a Retry-After delay that lasts longer than the SVID.
    pub(super) fn report_retry_after(&mut self, snapshot: &Snapshot) {
        let ends = snapshot.identity.as_ref().map(|identity| identity.svid.until());
        let waits = snapshot.retry_after_until.zip(ends).filter(|_| snapshot.ends_while_waiting);
        if let Some((until, ends)) = waits.filter(|_| !self.gap_ahead) {
            tracing::warn!(
                "the MIS asked this device to wait until {until}, and its identity ends at {ends}: in between it has none, \
                 and may not ask for one earlier. Ask the operator of the MIS to raise the limit that this device has met"
            );
        }
        self.gap_ahead = waits.is_some();
    }

    /// Logs that a record could not be saved and what follows from it, if it is news.
    pub(super) fn report_record(
        &mut self,
        name: &'static str,
        failure: Option<&StoreError>,
        consequence: &str,
    ) {
        if let Some(failure) = self.news_of_record(name, failure.map(|e| e.with_hint().to_string())) {
            tracing::warn!("{consequence}: {}", cause(&failure));
        }
    }

    /// The failure, unless it has been logged already.
    fn news_of_record(&mut self, name: &'static str, failure: Option<String>) -> Option<String> {
        let Some(failure) = failure else {
            self.records.remove(name);
            return None;
        };
        let logged = self.records.insert(name, failure.clone());
        (logged.as_ref() != Some(&failure)).then_some(failure)
    }

    /// Logs a failure to publish the files, if it is news.
    pub(super) fn report_files(&mut self, failure: Option<&Report>) {
        if let Some(report) = failure.filter(|report| self.files.as_ref() != Some(*report)) {
            tracing::error!("{}. What was published before is untouched", in_a_line(report));
        }
        self.files = failure.cloned();
    }
}

fn anchor_warnings(bundle: &Bundle, identities: &[Identity], now: Timestamp) -> Vec<String> {
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
    use super::super::identity::DEVICE;
    use super::*;

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
            reporter.news_of_record(record, failure.map(str::to_owned)).is_some()
        };
        assert!(said("time.json", Some("disk full")));
        assert!(!said("time.json", Some("disk full")), "after the next step");
        assert!(said("waits.json", Some("disk full")), "another record");
        assert!(said("time.json", Some("read-only")), "another reason");
        assert!(!said("time.json", None));
        assert!(said("time.json", Some("read-only")), "it could be stored in between");
    }

    /// `journalctl` shows no fields, so what went wrong is in the message. No event of the agent that asks for action has its
    /// cause in a field.
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
        let failure = local("state", "The agent's state cannot be written", &reason);
        reporter.report_outcome(&Event::Identity(DEVICE, IdentityEvent::KeyCreated(Err(failure.clone()))));
        reporter.report_files(Some(&failure.report));
        let events = events.0.lock().unwrap();
        assert_eq!(events.len(), 2);
        for message in events.iter() {
            assert!(
                message.starts_with("The agent's state cannot be written: the disk is full"),
                "{message:.200}"
            );
            assert!(!message.contains('\x1b') && message.len() < 10_000, "{}", message.len());
        }
    }

    /// The messages of events, without their fields.
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
            self.0.0.lock().unwrap().push(message.0);
        }
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }
}
