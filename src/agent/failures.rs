//! Failures in the lifecycle's words, and in the log.

use std::collections::BTreeMap;
use std::fmt::Display;

use crate::keys::{ErrorKind, KeyError};
use crate::lifecycle::{Event, Failure, LONGEST_RETRY_AFTER, Meaning, NotAdopted, Report, Shown};
use crate::publish::Snapshot;
use crate::spiffe::svid::{self, X509Svid};
use crate::spiffe::{AnchorFacts, Bundle};
use crate::store::StoreError;
use crate::text::Excerpt;
use crate::time::Timestamp;

/// Characters of a cause in a log message.
const MAX_CAUSE: usize = 2048;

/// What an error says, for a log message: a journal that is read as lines shows no fields.
pub(super) fn cause(e: &dyn Display) -> Excerpt {
    Excerpt::of(e, MAX_CAUSE)
}

/// The error with its reason, for a log message.
pub(super) fn in_a_line(report: &Report) -> Excerpt {
    match &report.detail {
        Some(detail) => cause(&format_args!("{}: {detail}", report.title)),
        None => cause(&report.title),
    }
}

/// Something on this device stands in the way.
pub(super) fn local(code: &str, title: &str, why: &dyn Display) -> Failure {
    Failure { meaning: Meaning::Local, retry_after: None, report: Report::of_agent(code, title, why) }
}

pub(super) fn key_failure(e: &KeyError) -> Failure {
    local("key", "The key cannot be used", e)
}

/// The key of the SVID that is held cannot be used. One that is lost is a matter of its own.
pub(super) fn current_key_failure(e: &KeyError) -> Failure {
    if e.kind() != ErrorKind::KeyUnusable {
        return key_failure(e);
    }
    let (question, remedy) = match e {
        KeyError::NotThisTpm { .. } => (
            "Was the TPM of this device replaced or cleared, or its disk moved to another device?",
            "put the TPM back",
        ),
        _ => ("Was what the key is sealed with replaced or deleted?", "put it back"),
    };
    let why = format!(
        "{e}. {question} If that was meant to be, let the device enroll with a new key: miaf-agent retry --new-key. By \
         itself it does so when the identity has expired. If not, {remedy}: the agent looks for it every hour"
    );
    Failure { meaning: Meaning::CurrentKeyLost, ..local("key-lost", "The key of this device is lost", &why) }
}

/// What was said last of each kind of work. A device that is offline for a month says so once, not ten thousand times.
#[derive(Debug, Default)]
pub(super) struct Spoken {
    discovery: Option<Report>,
    bundle: Option<Report>,
    identity: Option<Report>,
    key: Option<Report>,
    files: Option<Report>,
    anchors: Vec<String>,
    time_in_doubt: bool,
    gap_ahead: bool,
    records: BTreeMap<&'static str, String>,
}

impl Spoken {
    /// Logs a failure that is news, in whole, `instance` included (miaf-v0 P3).
    pub(super) fn of(&mut self, event: &Event) {
        let (said, failure) = match event {
            // Not the end of anything: only an adopted SVID shows that what failed before is over.
            Event::Wake
            | Event::Told(_)
            | Event::KeyCreated(Ok(()))
            | Event::Answered(Ok(()))
            | Event::Adopted(Err(NotAdopted::Early(_) | NotAdopted::UnknownIssuer)) => return,
            Event::Discovery(outcome) => (&mut self.discovery, outcome.as_ref().err()),
            Event::Bundle(outcome) => (&mut self.bundle, outcome.as_ref().err()),
            Event::KeyProven(outcome) => (&mut self.key, outcome.as_ref().err()),
            Event::KeyCreated(outcome) | Event::Answered(outcome) => {
                (&mut self.identity, outcome.as_ref().err())
            }
            Event::Adopted(Err(
                NotAdopted::IssuerExpired(failure) | NotAdopted::Kept(failure) | NotAdopted::Refused(failure),
            )) => (&mut self.identity, Some(failure)),
            Event::Adopted(Ok(_)) => (&mut self.identity, None),
        };
        let Some(Failure { report, retry_after, .. }) = failure else {
            *said = None;
            return;
        };
        let Report { kind, status, instance, .. } = report;
        let what = in_a_line(report);
        if said.as_ref() == Some(report) {
            tracing::debug!(problem_type = kind, status, instance, ?retry_after, "again: {what}");
            return;
        }
        tracing::warn!(problem_type = kind, status, instance, ?retry_after, "{what}");
        if retry_after.is_some_and(|wait| wait > LONGEST_RETRY_AFTER) {
            tracing::warn!("the MIS asked for a wait of more than 7 days; the agent asks again after 7 days");
        }
        *said = Some(report.clone());
    }

    /// Logs what is wrong with a bundle that is in use, if it is news: parts of it that are not used, and anchors that
    /// some peers refuse now because of their validity.
    pub(super) fn of_anchors(&mut self, bundle: &Bundle, held: Option<&X509Svid>, now: Timestamp) {
        let said = complaints(bundle, held, now);
        for complaint in said.iter().filter(|complaint| !self.anchors.contains(complaint)) {
            tracing::warn!(trust_domain = %bundle.trust_domain(), "the trust bundle: {complaint}");
        }
        self.anchors = said;
    }

    /// Logs that the time which the MIS shows is not believed at once, if that is news.
    pub(super) fn of_time(&mut self, shown: Shown, time: Timestamp, wall: Timestamp) {
        let in_doubt = shown == Shown::Doubted;
        if in_doubt && !std::mem::replace(&mut self.time_in_doubt, in_doubt) {
            tracing::warn!(
                "the MIS shows the time {time}, and this device's clock {wall}: the MIS is asked again before anything \
                 follows from that"
            );
        }
        self.time_in_doubt = in_doubt;
    }

    /// Warns of a wait that the MIS asked for and that lasts longer than the SVID.
    pub(super) fn of_wait(&mut self, snapshot: &Snapshot) {
        let ends = snapshot.identity.as_ref().map(|identity| identity.svid.until());
        let waits = snapshot.asked_to_wait_until.zip(ends).filter(|_| snapshot.ends_while_waiting);
        if let Some((until, ends)) = waits.filter(|_| !self.gap_ahead) {
            tracing::warn!(
                "the MIS asked this device to wait until {until}, and its identity ends at {ends}: in between it has none, \
                 and may not ask for one earlier. Ask the operator of the MIS to raise the limit that this device has met"
            );
        }
        self.gap_ahead = waits.is_some();
    }

    /// Logs that a record could not be written and what follows from it, if it is news.
    pub(super) fn of_record(&mut self, name: &'static str, failure: Option<&StoreError>, so: &str) {
        if let Some(failure) = self.news_of_record(name, failure.map(StoreError::to_string)) {
            tracing::warn!("{so}: {}", cause(&failure));
        }
    }

    /// The failure, unless it was said already.
    fn news_of_record(&mut self, name: &'static str, failure: Option<String>) -> Option<String> {
        let Some(failure) = failure else {
            self.records.remove(name);
            return None;
        };
        let said = self.records.insert(name, failure.clone());
        (said.as_ref() != Some(&failure)).then_some(failure)
    }

    /// Logs a failure to publish the files, if it is news.
    pub(super) fn of_files(&mut self, failure: Option<&Report>) {
        if let Some(report) = failure.filter(|report| self.files.as_ref() != Some(*report)) {
            tracing::error!("{}. What was published before is untouched", in_a_line(report));
        }
        self.files = failure.cloned();
    }
}

fn complaints(bundle: &Bundle, held: Option<&X509Svid>, now: Timestamp) -> Vec<String> {
    let vouching = held.and_then(|svid| svid::trust_path(svid, bundle, now)).map(|vouching| vouching.anchor);
    let of_anchor = |facts: &AnchorFacts| {
        let when = match now < facts.not_before {
            true => format!("becomes valid only at {}", facts.not_before),
            false => format!("expired at {}", facts.not_after),
        };
        let so = match vouching {
            Some(vouching) if vouching == facts => {
                ": no other leads to this device's SVID, so peers that use OpenSSL refuse it"
            }
            _ => "",
        };
        format!("its anchor \"{}\" {when}{so}", facts.subject)
    };
    let remarks = bundle.warnings().iter().map(ToString::to_string);
    remarks.chain(bundle.anchors_out_of_validity(now).map(of_anchor)).collect()
}

/// What was logged last of one matter: what is found again and again is logged once.
#[derive(Debug, Default)]
pub(super) struct Complaint(Option<String>);

impl Complaint {
    /// Whether this is another complaint than the last.
    pub(super) fn is_news(&mut self, complaint: &str) -> bool {
        self.0.replace(complaint.to_owned()).as_deref() != Some(complaint)
    }

    /// There is nothing to complain of now.
    pub(super) fn is_over(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_news_once_and_again_when_it_was_over() {
        let mut complaint = Complaint::default();
        assert!(complaint.is_news("a") && !complaint.is_news("a"));
        assert!(complaint.is_news("b") && complaint.is_news("a"));
        complaint.is_over();
        assert!(complaint.is_news("a"));
    }

    #[test]
    fn what_cannot_be_stored_is_said_once_and_again_when_it_is_news() {
        let mut spoken = Spoken::default();
        let mut said = |record, failure: Option<&str>| {
            spoken.news_of_record(record, failure.map(str::to_owned)).is_some()
        };
        assert!(said("time.json", Some("disk full")));
        assert!(!said("time.json", Some("disk full")), "after the next step");
        assert!(said("waits.json", Some("disk full")), "another record");
        assert!(said("time.json", Some("read-only")), "another reason");
        assert!(!said("time.json", None));
        assert!(said("time.json", Some("read-only")), "it could be stored in between");
    }

    /// `journalctl` shows no fields, so what went wrong is in the message. No event of the agent that somebody is to act on
    /// has its cause in a field.
    #[test]
    fn messages_of_warnings_and_errors_have_their_cause() {
        const CAUSES: [&str; 7] = ["error", "why", "detail", "problem", "reason", "cause", "failure"];
        let mut events = 0;
        let mut folders = vec![std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
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
    fn a_failure_is_logged_with_its_reason_in_the_message() {
        let events = Captured::default();
        let _guard = tracing::subscriber::set_default(Capturing(events.clone()));
        let mut spoken = Spoken::default();
        let reason = format!("the disk is full\x1b[31m{}", "x".repeat(100_000));
        let failure = local("state", "The agent's state cannot be written", &reason);
        spoken.of(&Event::KeyCreated(Err(failure.clone())));
        spoken.of_files(Some(&failure.report));
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
