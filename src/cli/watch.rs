//! `miaf-agent watch`: prints a line at every change.

use std::fmt::Display;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use super::render::{error, key, meaning, next_step, renewal, renewal_moment, step_after, trusted_by};
use super::{
    Output, Selection, complain, complain_with_hint, fail, fail_with_hint, json_line, reader, shown,
    unknown_identity, write,
};
use crate::hint::{Hint, Reason};
use miaf_client::api::{ErrorStatus, IdentityName, IdentityStatus, StateEvent};
use miaf_client::{Client, ClientError};
use miaf_spiffe::time::Timestamp;

/// Interval of attempts to connect to an agent that is not running.
const CONNECT_INTERVAL: Duration = Duration::from_millis(500);

pub(super) fn run(config: &Path, output: &Output, selection: &Selection) -> ExitCode {
    let agent = reader(config, output);
    let name = selection.identity.clone();
    let mut reporter = Reporter { json: output.json, name, last: None, is_disconnected: false };
    loop {
        match reporter.follow(&agent) {
            Err(End::OutputClosed) => return ExitCode::SUCCESS,
            Err(End::UnknownIdentity(name)) => return unknown_identity(&name),
            Err(End::Unwritable(e)) => return fail(&format_args!("the output cannot be written: {e}")),
            Err(End::Disconnected(why)) if !why.may_pass() => return fail_with_hint(&why),
            Err(End::Disconnected(why)) => reporter.disconnected(&why),
            Ok(()) => reporter.disconnected(&Reason::from("the agent has ended the connection")),
        }
        sleep(CONNECT_INTERVAL);
    }
}

struct Reporter {
    json: bool,
    /// The identity that is watched; all of them where it is `None`.
    name: Option<IdentityName>,
    last: Option<StateEvent>,
    is_disconnected: bool,
}

enum End {
    OutputClosed,
    Unwritable(io::Error),
    Disconnected(ClientError),
    UnknownIdentity(IdentityName),
}

impl Reporter {
    /// Prints changes until the agent ends.
    fn follow(&mut self, agent: &Client) -> Result<(), End> {
        for watched in agent.watch().map_err(End::Disconnected)? {
            let mut watched = watched.map_err(End::Disconnected)?;
            if let Some(name) = &self.name {
                watched.status.identities.retain(|identity| identity.name == *name);
                watched.svids.retain(|svid| svid.identity == *name);
                // One that was there may come back: another configuration, perhaps by a slip.
                if watched.status.identities.is_empty() && self.last.is_none() {
                    return Err(End::UnknownIdentity(name.clone()));
                }
            }
            if std::mem::take(&mut self.is_disconnected) {
                complain(&"connected to the agent");
            }
            let text = if self.json {
                json_line(&watched)
            } else {
                lines(self.last.as_ref(), &watched, SystemTime::now().into())
            };
            self.last = Some(watched);
            write(text.as_bytes()).map_err(|e| match e.kind() {
                ErrorKind::BrokenPipe => End::OutputClosed,
                _ => End::Unwritable(e),
            })?;
        }
        Ok(())
    }

    fn disconnected(&mut self, why: &dyn Hint) {
        if !std::mem::replace(&mut self.is_disconnected, true) {
            let why = Reason::of(why);
            complain_with_hint(&Reason { what: format!("{why}. Waiting for the agent"), ..why });
        }
    }
}

/// One line for each identity with news, and one for what they share: the time, which, and the
/// news.
fn lines(before: Option<&StateEvent>, after: &StateEvent, now: Timestamp) -> String {
    let mut text = String::new();
    let mut line = |what: &dyn Display, news: &[String]| {
        if !news.is_empty() {
            let line = format!("{now} {what}: {}", news.join("; "));
            text.push_str(&shown(line));
            text.push('\n');
        }
    };
    for identity in &after.status.identities {
        let name = &identity.name;
        let was = before.and_then(|before| Known::of(before, name));
        if let Some(is) = Known::of(after, name) {
            line(&format_args!("{name} {}", identity.state), &identity_news(was, is, now));
        }
    }
    let gone = before.into_iter().flat_map(|before| &before.status.identities);
    for IdentityStatus { name, .. } in gone {
        if after.status.identity(Some(name)).is_none() {
            line(&name, &["it is not configured any more".to_owned()]);
        }
    }
    line(&"trust domain", &shared_news(before, after, now));
    text
}

/// One identity in an event.
#[derive(Clone, Copy)]
struct Known<'a> {
    status: &'a IdentityStatus,
    leaf: Option<&'a String>,
    shared_error: Option<&'a ErrorStatus>,
}

impl<'a> Known<'a> {
    fn of(event: &'a StateEvent, name: &IdentityName) -> Option<Self> {
        let svid = event.svids.iter().find(|svid| svid.identity == *name);
        Some(Self {
            status: event.status.identity(Some(name))?,
            leaf: svid.and_then(|svid| svid.certificate_chain_pem.first()),
            shared_error: event.status.last_error.as_ref(),
        })
    }
}

fn identity_news(before: Option<Known<'_>>, after: Known<'_>, now: Timestamp) -> Vec<String> {
    let (was, is) = (before.map(|before| before.status), after.status);
    let mut news = Vec::new();
    let is_trusted = |status: &IdentityStatus| status.svid.as_ref().is_none_or(|svid| svid.trusted);
    if was.is_none_or(|was| was.state != is.state || is_trusted(was) != is_trusted(is)) {
        news.push(meaning(is));
    }
    if was.and_then(|was| was.spiffe_id.as_ref()) != is.spiffe_id.as_ref() {
        let id = is.spiffe_id.as_ref();
        news.push(id.map_or_else(|| "the identity is gone".into(), |id| format!("the identity is {id}")));
    }
    if let Some(svid) = &is.svid {
        let shown_before = was.and_then(|was| was.svid.as_ref());
        let by_hand = if is.is_by_operator() { " by hand" } else { "" };
        let renewal =
            renewal_moment(is, now).map(|at| format!("renewal{by_hand} {} ({at})", renewal(at, now)));
        // Serial numbers are the issuer's, and need not be unique.
        let is_new = shown_before.is_none_or(|before| before.serial != svid.serial)
            || before.and_then(|before| before.leaf) != after.leaf;
        if is_new {
            let new = if before.is_some() { "new SVID" } else { "SVID" };
            news.push(format!("{new} {} until {}", svid.serial, svid.not_after));
            news.extend(renewal);
        } else if shown_before.is_some_and(|before| before.renew_at != svid.renew_at) {
            news.extend(renewal);
        }
    }
    if was.is_some_and(|was| was.key.lost) != is.key.lost {
        news.push(format!("key: {}", key(&is.key)));
    }
    let of_token = |status: &IdentityStatus| {
        status.est.as_ref().map(|est| (est.has_token, est.token_needed_after)).unwrap_or_default()
    };
    let ((had_token, needed_after_before), (has_token, needed_after)) =
        (was.map(of_token).unwrap_or_default(), of_token(is));
    if has_token && !had_token {
        news.push("there is an enrollment token".to_owned());
    }
    if let Some(ends) = needed_after.filter(|_| needed_after != needed_after_before) {
        news.push(format!("an enrollment token is needed from {ends} on, unless it is renewed before"));
    }
    let step = || next_step(is, after.shared_error, now);
    news.extend(error_news(was.and_then(|was| was.last_error.as_ref()), is.last_error.as_ref(), &step));
    news
}

fn shared_news(before: Option<&StateEvent>, after: &StateEvent, now: Timestamp) -> Vec<String> {
    let (was, is) = (before.map(|before| &before.status), &after.status);
    let mut news = Vec::new();
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
    let error = is.last_error.as_ref();
    let step = || error.map(|error| step_after(error, now)).unwrap_or_default();
    news.extend(error_news(was.and_then(|was| was.last_error.as_ref()), error, &step));
    news
}

fn error_news(
    was: Option<&ErrorStatus>,
    is: Option<&ErrorStatus>,
    next_step: &dyn Fn() -> String,
) -> Option<String> {
    match (was, is) {
        (was, Some(wrong)) if was != Some(wrong) => {
            let again = was.is_some_and(|was| (&was.title, &was.detail) == (&wrong.title, &wrong.detail));
            if again {
                return Some(format!("{}, again. Next step: {}", wrong.title, next_step()));
            }
            let hint = wrong.hint.as_ref().map(|hint| format!(" Hint: {}", sentence(hint)));
            let hint = hint.unwrap_or_default();
            Some(format!("{}{hint} Next step: {}", sentence(&error(wrong)), next_step()))
        }
        (Some(_), None) => Some("no error any more".into()),
        _ => None,
    }
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

fn sentence(text: &str) -> String {
    if text.ends_with(['.', '!', '?']) { text.to_owned() } else { format!("{text}.") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::render::tests::{example, time};
    use miaf_client::api::{BundleStatus, EstAuthorization, EstStatus, State};
    use miaf_spiffe::{BundleDocument, BundleKey};

    fn two_anchors() -> BundleDocument {
        let key = BundleKey { kty: "EC", usage: "x509-svid", x5c: [String::new()], ..BundleKey::default() };
        BundleDocument { keys: vec![key.clone(), key], ..BundleDocument::default() }
    }

    #[test]
    fn line_has_the_time_the_identity_its_state_and_news() {
        let (status, now) = example();
        let first = StateEvent { status, svids: Vec::new(), bundle: None };
        let printed = lines(None, &first, now);
        for part in [
            "2026-01-02T00:01:00Z device renewing: the device has a valid identity",
            "the identity is spiffe://factory.example/margo/device/87f4893b-a029-42c1-8777-d214f7f76120",
            "; SVID 01:02 until 2026-01-03T00:00:00Z; renewal due for 1h 1m (2026-01-01T23:00:00Z)",
            "; Service Unavailable: The database is away. Next step: none: the agent tries again in 4m\n",
        ] {
            assert!(printed.contains(part), "{part:?} is missing from {printed}");
        }
        assert!(!printed.contains("factory certificate") && !printed.contains("bundle"), "{printed}");
        assert_eq!(lines(Some(&first), &first, now), "");

        let mut again = first.clone();
        again.status.identities[0].last_error.as_mut().unwrap().retry_at = None;
        let printed = lines(Some(&first), &again, now);
        assert!(printed.contains("renewing: Service Unavailable, again. Next step: to have"), "{printed}");

        let mut next = first.clone();
        let identity = &mut next.status.identities[0];
        identity.state = State::Active.into();
        identity.last_error = None;
        let svid = identity.svid.as_mut().unwrap();
        (svid.serial, svid.renew_at) = ("03".into(), None);
        next.status.bundle = Some(BundleStatus {
            sequence: Some(7),
            fetched_at: time("2026-01-02T00:00:00Z"),
            refresh_at: None,
            stale: false,
            stale_at: None,
        });
        next.bundle = Some(two_anchors());
        assert_eq!(
            lines(Some(&first), &next, now),
            "2026-01-02T00:01:00Z device active: the device has a valid identity; new SVID 03 until \
             2026-01-03T00:00:00Z; no error any more\n\
             2026-01-02T00:01:00Z trust domain: trust bundle number 7 with 2 anchors\n"
        );

        let mut last = next.clone();
        let identity = &mut last.status.identities[0];
        identity.key.lost = true;
        (identity.spiffe_id, identity.svid, last.bundle) = (None, None, None);
        last.status.initial_trust.as_mut().unwrap().pins = 0;
        last.status.bootstrap.as_mut().unwrap().sha256 = "00".into();
        let printed = lines(Some(&next), &last, now);
        for part in [
            "device active: the identity is gone",
            "key: ecdsa-p256, lost",
            "trust domain: the trust bundle is gone",
            "certificate 00 until",
            "MIS trusted by",
        ] {
            assert!(printed.contains(part), "{part:?} is missing from {printed}");
        }
    }

    #[test]
    fn identities_that_come_and_go_have_lines_of_their_own() {
        let (status, now) = example();
        let mut first = StateEvent { status, svids: Vec::new(), bundle: None };
        first.status.identities[0].last_error = None;
        let mut both = first.clone();
        let mut manual = both.status.identities[0].clone();
        manual.name = IdentityName::parse("line-7").unwrap();
        (manual.state, manual.enroll) = (State::Active.into(), Some("manual".into()));
        both.status.identities.push(manual);
        let printed = lines(Some(&first), &both, now);
        assert!(printed.starts_with("2026-01-02T00:01:00Z line-7 active: "), "{printed}");
        assert!(
            printed.contains("; renewal by hand due for 1h 1m (") && printed.lines().count() == 1,
            "{printed}"
        );
        let printed = lines(Some(&both), &first, now);
        assert_eq!(printed, "2026-01-02T00:01:00Z line-7: it is not configured any more\n");
    }

    #[test]
    fn hint_of_a_new_error_is_in_the_line() {
        let (mut status, now) = example();
        let mut error = status.identities[0].last_error.take().unwrap();
        error.hint = Some("Correct it".into());
        status.last_error = Some(error);
        let event = StateEvent { status, svids: Vec::new(), bundle: None };
        let printed = lines(None, &event, now);
        let expected =
            "trust domain: Service Unavailable: The database is away. Hint: Correct it. Next step: follow";
        assert!(printed.contains(expected), "{printed}");
    }

    #[test]
    fn line_has_news_of_enrollment_tokens() {
        let (mut status, now) = example();
        status.identities[0].last_error = None;
        let est = |has_token, after: Option<&str>| EstStatus {
            url: None,
            url_source: None,
            authorization: EstAuthorization::Token.into(),
            token_source: None,
            has_token,
            token_needed: false,
            token_needed_after: after.map(time),
            certificate: None,
            tls12_allowed: false,
            standardized: true,
        };
        let with = |has_token, after| {
            let mut status = status.clone();
            status.identities[0].est = Some(est(has_token, after));
            StateEvent { status, svids: Vec::new(), bundle: None }
        };
        let near = Some("2026-01-03T00:00:00Z");
        let (fine, failing, supplied) = (with(false, None), with(false, near), with(true, near));
        let line = |news: &str| format!("2026-01-02T00:01:00Z device renewing: {news}\n");
        let needed =
            "an enrollment token is needed from 2026-01-03T00:00:00Z on, unless it is renewed before";
        assert_eq!(lines(Some(&fine), &failing, now), line(needed));
        assert_eq!(lines(Some(&failing), &supplied, now), line("there is an enrollment token"));
        assert_eq!(lines(Some(&supplied), &fine, now), "");
    }
}
