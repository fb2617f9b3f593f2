//! `miaf-agent wait`: blocks until there is what a program needs, or until its timeout.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use clap::ValueEnum;

use super::render::{approximate, error, meaning, next_step};
use super::{Output, Selection, explain, fail_with_hint, print, print_json, reader, shown};
use crate::hint::{Hint, Reason};
use miaf_client::api::{IdentityName, IdentityStatus, ProblemCode, StateEvent, Status, SvidDocument};
use miaf_client::{Client, ClientError};
use miaf_spiffe::time::Timestamp;

/// Interval of attempts to connect to an agent that is not running.
const CONNECT_INTERVAL: Duration = Duration::from_millis(250);
/// Interval of checks whether an SVID can be used: not every reason why it cannot be is reported as
/// a change.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Limit of one request, within the timeout.
const REQUEST_LIMIT: Duration = Duration::from_secs(20);

/// The document to wait for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum What {
    /// An SVID that peers accept: valid now, under the trust bundle, with a key that can be used
    #[default]
    Svid,
    /// A trust bundle with an anchor
    Bundle,
}

/// Shortest timeout. A caller that gives 0 wants to know the state, too.
const MIN_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) fn run(
    config: &Path,
    output: &Output,
    selection: &Selection,
    what: What,
    timeout: Duration,
) -> ExitCode {
    let timeout = timeout.max(MIN_TIMEOUT);
    let mut wait = Wait {
        agent: reader(config, output),
        what,
        name: selection.identity.clone(),
        until: Instant::now().checked_add(timeout), // beyond what can be counted: without end
        seen: None,
    };
    loop {
        let why = match wait.follow() {
            Ok(watched) => return report(&watched, wait.svid(&watched), what, output),
            Err(why) if !why.may_pass() => return fail_with_hint(&why),
            Err(why) => why,
        };
        if !matches!(why, ClientError::Silent(_)) {
            wait.seen = None; // the agent has ended
        }
        sleep(CONNECT_INTERVAL.min(wait.left()));
        if wait.left().is_zero() {
            let Wait { name, seen, .. } = wait;
            return fail_with_hint(&TimedOut { what, name, timeout, seen, why: explain(config, &why) });
        }
    }
}

fn report(watched: &StateEvent, svid: Option<&SvidDocument>, what: What, output: &Output) -> ExitCode {
    match (what, svid, &watched.bundle) {
        (What::Svid, Some(svid), _) if output.json => print_json(svid),
        (What::Svid, Some(svid), _) => {
            let line = format!("the SVID of {} is valid until {}", svid.spiffe_id, svid.not_after);
            print(&format!("{}\n", shown(line)))
        }
        (What::Bundle, _, bundle) if output.json => print_json(bundle),
        _ => print("there is a trust bundle\n"),
    }
}

struct Wait {
    agent: Client,
    what: What,
    /// The identity that is waited for; the default identity where it is `None`.
    name: Option<IdentityName>,
    until: Option<Instant>,
    /// The last status of the agent, while it runs.
    seen: Option<Status>,
}

impl Wait {
    fn left(&self) -> Duration {
        self.until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()))
    }

    fn agent(&self) -> Client {
        self.agent.clone().with_limit(REQUEST_LIMIT.min(self.left()))
    }

    /// Watches the agent until there is what was waited for, the agent ends, or the next check is
    /// due.
    fn follow(&mut self) -> Result<StateEvent, ClientError> {
        self.seen = None;
        let mut watch = self.agent().watch()?;
        let mut until = self.until;
        while let Some(watched) = watch.next_before(until) {
            let watched = watched?;
            if self.is_there(&watched)? {
                return Ok(watched);
            }
            until = self.until.into_iter().chain(self.next_check(&watched)).min();
            self.seen = Some(watched.status);
        }
        Err(ClientError::Broken("it has ended".into()))
    }

    fn is_there(&self, watched: &StateEvent) -> Result<bool, ClientError> {
        if self.what == What::Bundle {
            return Ok(watched.bundle.as_ref().is_some_and(|bundle| !bundle.keys.is_empty()));
        }
        if self.svid(watched).is_none() {
            return Ok(false);
        }
        match self.agent().status() {
            Ok(status) => Ok(status.identity(self.name.as_ref()).is_some_and(|identity| identity.ready)),
            Err(e) if is_at_a_limit(&e) => Ok(false), // it still watches, and checks again
            Err(e) => Err(e),
        }
    }

    fn svid<'a>(&self, watched: &'a StateEvent) -> Option<&'a SvidDocument> {
        let name = &watched.status.identity(self.name.as_ref())?.name;
        watched.svids.iter().find(|svid| svid.identity == *name)
    }

    /// When to check again an SVID that cannot be used. Anything else is reported as a change.
    fn next_check(&self, watched: &StateEvent) -> Option<Instant> {
        if self.what == What::Bundle || self.svid(watched).is_none() {
            return None;
        }
        let next = Instant::now().checked_add(CHECK_INTERVAL);
        let identity = watched.status.identity(self.name.as_ref());
        next.into_iter().chain(identity.and_then(begins)).min()
    }
}

/// Whether a request was refused only because the agent, or this user, has too many others. Any
/// other refusal is an answer, and the reason why the wait has an end.
fn is_at_a_limit(error: &ClientError) -> bool {
    use ProblemCode::{Busy, ConnectionLimit, RateExceeded};
    let ClientError::Refused { code: Some(code), .. } = error else { return false };
    code.known().is_some_and(|code| matches!(code, Busy | ConnectionLimit | RateExceeded))
}

/// When an SVID becomes valid: this is not reported as a change.
fn begins(identity: &IdentityStatus) -> Option<Instant> {
    let wait = Timestamp::from(SystemTime::now()).until(identity.svid.as_ref()?.not_before);
    Instant::now().checked_add(wait).filter(|_| !wait.is_zero())
}

/// The timeout was reached first.
struct TimedOut {
    what: What,
    name: Option<IdentityName>,
    timeout: Duration,
    /// The last status of the agent. `None`: it is not running.
    seen: Option<Status>,
    why: Reason,
}

impl Hint for TimedOut {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let Some(status) = &self.seen else { return self.why.hint() };
        let Some(identity) = status.identity(self.name.as_ref()) else {
            return Some("See those that there are: miaf-agent status".into());
        };
        identity.error(status.last_error.as_ref())?.hint.as_deref().map(Cow::Borrowed)
    }
}

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.what {
            What::Svid => "a valid SVID",
            What::Bundle => "a trust bundle",
        };
        write!(f, "timed out after {} waiting for {what}: ", approximate(self.timeout))?;
        match &self.seen {
            None => self.why.fmt(f),
            Some(status) => {
                let Some(identity) = status.identity(self.name.as_ref()) else {
                    return f.write_str("there is no identity with this name");
                };
                write!(f, "the state is {} - {}", identity.state, meaning(identity))?;
                let shared = status.last_error.as_ref();
                if let Some(wrong) = identity.error(shared) {
                    write!(f, ". Last error: {}", error(wrong).trim_end_matches('.'))?;
                }
                write!(f, ". Next step: {}", next_step(identity, shared, SystemTime::now().into()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::render::tests::example;

    #[test]
    fn only_a_limit_is_waited_for_while_watching() {
        let refused = |status, code: Option<ProblemCode>| ClientError::Refused {
            status,
            code: code.map(Into::into),
            detail: String::new(),
            hint: None,
        };
        for code in [ProblemCode::ConnectionLimit, ProblemCode::Busy, ProblemCode::RateExceeded] {
            assert!(is_at_a_limit(&refused(503, Some(code))), "{code}");
        }
        for code in [Some(ProblemCode::NotAvailable), Some(ProblemCode::KeyLost), None] {
            assert!(!is_at_a_limit(&refused(503, code)), "{code:?}");
        }
        assert!(!is_at_a_limit(&ClientError::Broken(String::new())));
    }

    /// It ends only when an operator acts, so the hint says how; an identity that is not there may
    /// still be configured.
    #[test]
    fn timeout_message_has_the_hint_of_what_was_missing() {
        let (mut status, _) = example();
        let identity = status.identities.first_mut().unwrap();
        identity.state = miaf_client::api::State::WaitingForOperator.into();
        identity.enroll = Some("manual".into());
        let error = identity.last_error.as_mut().unwrap();
        error.code = ProblemCode::OperatorNeeded.into();
        (error.permanent, error.retry_at) = (true, None);
        error.hint = Some("Bring it: miaf-agent install chain.pem".into());
        let timed_out = |name: Option<&str>| TimedOut {
            what: What::Svid,
            name: name.map(|name| IdentityName::parse(name).unwrap()),
            timeout: Duration::from_secs(90),
            seen: Some(status.clone()),
            why: Reason::from(""),
        };
        let waiting = timed_out(None);
        assert!(waiting.to_string().contains("the state is waiting-for-operator - "), "{waiting}");
        assert!(waiting.to_string().ends_with("an operator has to bring the certificate, as the hint says"));
        assert_eq!(waiting.hint().unwrap(), "Bring it: miaf-agent install chain.pem");
        let unknown = timed_out(Some("other"));
        assert!(unknown.to_string().ends_with("there is no identity with this name"), "{unknown}");
        assert!(unknown.hint().unwrap().contains("miaf-agent status"));
    }

    #[test]
    fn timeout_message_says_what_was_missing() {
        let (status, _) = example();
        let timeout = Duration::from_secs(90);
        let message = |what, seen| {
            let why = Reason::of(&ClientError::Broken("it has ended".into()));
            TimedOut { what, name: None, timeout, seen, why }.to_string()
        };
        let of_svid = message(What::Svid, Some(status));
        assert!(
            of_svid.starts_with(
                "timed out after 1m 30s waiting for a valid SVID: the state is renewing - the device has a valid identity"
            ) && of_svid.contains(". Last error: Service Unavailable: The database is away. Next step: none: "),
            "{of_svid}"
        );
        let of_bundle = message(What::Bundle, None);
        assert_eq!(
            of_bundle,
            "timed out after 1m 30s waiting for a trust bundle: the agent did not answer: it has ended"
        );
    }
}
