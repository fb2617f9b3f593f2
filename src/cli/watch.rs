//! `miaf-agent watch`: prints a line at every change.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use super::render::{error, key, meaning, next_step, renewal, trusted_by};
use super::{Output, complain, fail, json_line, reader, shown, write};
use miaf_client::api::StateEvent;
use miaf_client::{Client, ClientError};
use miaf_spiffe::time::Timestamp;

/// Interval of attempts to connect to an agent that is not running.
const CONNECT_INTERVAL: Duration = Duration::from_millis(500);

pub(super) fn run(config: &Path, output: &Output) -> ExitCode {
    let agent = reader(config, output);
    let mut reporter = Reporter { json: output.json, last: None, is_disconnected: false };
    loop {
        match reporter.follow(&agent) {
            Err(End::OutputClosed) => return ExitCode::SUCCESS,
            Err(End::Unwritable(e)) => return fail(&format_args!("the output cannot be written: {e}")),
            Err(End::Disconnected(why)) if !why.may_pass() => return fail(&why),
            Err(End::Disconnected(why)) => reporter.disconnected(&why),
            Ok(()) => reporter.disconnected(&"the agent has ended the connection"),
        }
        sleep(CONNECT_INTERVAL);
    }
}

struct Reporter {
    json: bool,
    last: Option<StateEvent>,
    is_disconnected: bool,
}

enum End {
    OutputClosed,
    Unwritable(io::Error),
    Disconnected(ClientError),
}

impl Reporter {
    /// Prints changes until the agent ends.
    fn follow(&mut self, agent: &Client) -> Result<(), End> {
        for watched in agent.watch().map_err(End::Disconnected)? {
            let watched = watched.map_err(End::Disconnected)?;
            if std::mem::take(&mut self.is_disconnected) {
                complain(&"connected to the agent");
            }
            let line = if self.json {
                Some(json_line(&watched))
            } else {
                line(self.last.as_ref(), &watched, SystemTime::now())
            };
            self.last = Some(watched);
            write(&line.unwrap_or_default()).map_err(|e| match e.kind() {
                ErrorKind::BrokenPipe => End::OutputClosed,
                _ => End::Unwritable(e),
            })?;
        }
        Ok(())
    }

    fn disconnected(&mut self, why: &dyn std::fmt::Display) {
        if !std::mem::replace(&mut self.is_disconnected, true) {
            complain(&format_args!("{why}. Waiting for the agent"));
        }
    }
}

/// Time, state, and what is new. `None`: no change that is shown.
fn line(before: Option<&StateEvent>, after: &StateEvent, now: SystemTime) -> Option<String> {
    let news = news(before, after, now);
    let line = || format!("{} {}: {}", Timestamp::from(now), after.status.state, news.join("; "));
    (!news.is_empty()).then(|| format!("{}\n", shown(line())))
}

fn news(before: Option<&StateEvent>, after: &StateEvent, now: SystemTime) -> Vec<String> {
    let (was, is) = (before.map(|before| &before.status), &after.status);
    let mut news = Vec::new();
    if was.map(|was| &was.state) != Some(&is.state) {
        news.push(meaning(&is.state).to_owned());
    }
    if was.and_then(|was| was.spiffe_id.as_ref()) != is.spiffe_id.as_ref() {
        let id = is.spiffe_id.as_ref();
        news.push(id.map_or_else(|| "the identity is gone".into(), |id| format!("this device is {id}")));
    }
    if let Some(svid) = &is.svid {
        let shown_before = was.and_then(|was| was.svid.as_ref());
        let renewal = svid.renew_at.as_ref().map(|at| format!("renewal {} ({at})", renewal(at, now)));
        // Serial numbers are the issuer's, and need not be unique.
        if shown_before.is_none_or(|before| before.serial != svid.serial) || leaf(before) != leaf(Some(after))
        {
            let new = if before.is_some() { "new SVID" } else { "SVID" };
            news.push(format!("{new} {} until {}", svid.serial, svid.not_after));
            news.extend(renewal);
        } else if shown_before.is_some_and(|before| before.renew_at != svid.renew_at) {
            news.extend(renewal);
        }
    }
    if was.is_some_and(|was| was.key.lost) != is.key.lost {
        news.push(format!("key: {}", key(is)));
    }
    if before.and_then(|before| before.bundle.as_ref()) != after.bundle.as_ref() {
        news.push(bundle(after));
    }
    if let Some(factory) = &is.bootstrap
        && was.is_some_and(|was| was.bootstrap.as_ref().map(|b| &b.sha256) != Some(&factory.sha256))
    {
        news.push(format!("factory certificate {} until {}", factory.sha256, factory.not_after));
    }
    if let Some(trust) = &is.initial_trust
        && was.is_some_and(|was| was.initial_trust.as_ref() != Some(trust))
    {
        news.push(format!("MIS trusted {}", trusted_by(trust)));
    }
    match (was.and_then(|was| was.last_error.as_ref()), &is.last_error) {
        (was, Some(wrong)) if was != Some(wrong) => {
            let again = was.is_some_and(|was| (&was.title, &was.detail) == (&wrong.title, &wrong.detail));
            let what = if again { format!("{}, again", wrong.title) } else { error(wrong) };
            news.push(format!("{} Next step: {}", sentence(&what), next_step(is, now)));
        }
        (Some(_), None) => news.push("no error any more".into()),
        _ => {}
    }
    news
}

fn bundle(watched: &StateEvent) -> String {
    let Some(bundle) = &watched.bundle else { return "the trust bundle is gone".into() };
    let anchors = bundle.keys.len();
    let sequence = watched.status.bundle.as_ref().and_then(|bundle| bundle.sequence);
    let number = sequence.map_or_else(String::new, |sequence| format!(" number {sequence}"));
    match anchors {
        1 => format!("trust bundle{number} with 1 anchor"),
        more => format!("trust bundle{number} with {more} anchors"),
    }
}

fn leaf(watched: Option<&StateEvent>) -> Option<&String> {
    watched?.svid.as_ref()?.certificate_chain_pem.first()
}

fn sentence(text: &str) -> String {
    if text.ends_with(['.', '!', '?']) { text.to_owned() } else { format!("{text}.") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::render::tests::example;
    use miaf_client::api::BundleStatus;
    use miaf_spiffe::{BundleDocument, BundleKey};

    fn two_anchors() -> BundleDocument {
        let key = BundleKey { kty: "EC", usage: "x509-svid", x5c: [String::new()], ..BundleKey::default() };
        BundleDocument { keys: vec![key.clone(), key], ..BundleDocument::default() }
    }

    #[test]
    fn line_has_the_time_the_state_and_what_is_new() {
        let (status, now) = example();
        let first = StateEvent { status, svid: None, bundle: None };
        let printed = line(None, &first, now).unwrap();
        for part in [
            "2026-01-02T00:01:00Z renewing: this device has a valid identity",
            "this device is spiffe://factory.example/margo/device/x",
            "; SVID 01:02 until 2026-01-03T00:00:00Z; renewal due for 1h 1m (2026-01-01T23:00:00Z)",
            "; Service Unavailable: The database is away. Next step: none: the agent tries again in 4m\n",
        ] {
            assert!(printed.contains(part), "{part:?} is missing from {printed}");
        }
        assert!(!printed.contains("factory certificate") && !printed.contains("bundle"), "{printed}");
        assert_eq!(line(Some(&first), &first, now), None);

        let mut again = first.clone();
        again.status.last_error.as_mut().unwrap().retry_at = None;
        let printed = line(Some(&first), &again, now).unwrap();
        assert!(
            printed.contains("renewing: Service Unavailable, again. Next step: correct that"),
            "{printed}"
        );

        let mut next = first.clone();
        next.status.state = "active".into();
        next.status.last_error = None;
        let svid = next.status.svid.as_mut().unwrap();
        (svid.serial, svid.renew_at) = ("03".into(), None);
        next.status.bundle =
            Some(BundleStatus { sequence: Some(7), fetched_at: String::new(), refresh_at: None });
        next.bundle = Some(two_anchors());
        assert_eq!(
            line(Some(&first), &next, now).unwrap(),
            "2026-01-02T00:01:00Z active: this device has a valid identity; new SVID 03 until 2026-01-03T00:00:00Z; \
             trust bundle number 7 with 2 anchors; no error any more\n"
        );

        let mut last = next.clone();
        last.status.key.lost = true;
        (last.status.spiffe_id, last.status.svid, last.bundle) = (None, None, None);
        last.status.initial_trust.as_mut().unwrap().pins = 0;
        last.status.bootstrap.as_mut().unwrap().sha256 = "00".into();
        let printed = line(Some(&next), &last, now).unwrap();
        for part in [
            "the identity is gone",
            "key: ecdsa-p256, lost",
            "bundle is gone",
            "certificate 00 until",
            "MIS trusted by",
        ] {
            assert!(printed.contains(part), "{part:?} is missing from {printed}");
        }
    }
}
