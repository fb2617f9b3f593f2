//! `miaf-agent wait`: until there is what a program needs, or the time is up.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use clap::ValueEnum;

use super::words::{error, meaning, next_step, rough};
use super::{Output, fail, print, print_json, reader, shown, unanswered};
use crate::client::{Client, ClientError};
use crate::publish::broadcast::StateEvent;
use crate::publish::status::Status;

/// Between two looks whether an agent that is away has come.
const PAUSE: Duration = Duration::from_millis(250);
/// Between two looks whether an SVID that is there can be used: not every reason why it could not is told as a change.
const AGAIN: Duration = Duration::from_secs(5);
/// The longest that one answer is waited for, within the time there is.
const ANSWER: Duration = Duration::from_secs(20);

/// What is waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum What {
    /// An SVID that others accept: valid now, under the trust bundle, with a key that can be used
    #[default]
    Svid,
    /// A trust bundle that holds an anchor
    Bundle,
}

/// Who does not want to wait wants an answer all the same.
const SHORTEST: Duration = Duration::from_secs(1);

pub(super) fn run(config: &Path, output: &Output, what: What, timeout: Duration) -> ExitCode {
    let timeout = timeout.max(SHORTEST);
    let mut wait = Wait {
        agent: reader(config, output),
        what,
        until: Instant::now().checked_add(timeout), // beyond what can be counted: without end
        seen: None,
    };
    loop {
        let why = match wait.attend() {
            Ok(watched) => return tell(&watched, what, output),
            Err(why) if !why.may_pass() => return fail(&why),
            Err(why) => why,
        };
        if !matches!(why, ClientError::Silent(_)) {
            wait.seen = None; // it has gone
        }
        sleep(PAUSE.min(wait.left()));
        if wait.left().is_zero() {
            return fail(&InVain { what, timeout, seen: wait.seen, why: unanswered(config, &why) });
        }
    }
}

fn tell(watched: &StateEvent, what: What, output: &Output) -> ExitCode {
    match (what, &watched.svid, &watched.bundle) {
        (What::Svid, Some(svid), _) if output.json => print_json(svid),
        (What::Svid, Some(svid), _) => {
            let line = format!("this device is {} until {}", svid.spiffe_id, svid.not_after);
            print(&format!("{}\n", shown(line)))
        }
        (What::Bundle, _, bundle) if output.json => print_json(bundle),
        _ => print("there is a trust bundle\n"),
    }
}

struct Wait {
    agent: Client,
    what: What,
    until: Option<Instant>,
    /// The last that an agent said which is still there.
    seen: Option<Status>,
}

impl Wait {
    fn left(&self) -> Duration {
        self.until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()))
    }

    fn agent(&self) -> Client {
        self.agent.clone().with_limit(ANSWER.min(self.left()))
    }

    /// Watches the agent until it is there, or the agent is not, or it is time to look again.
    fn attend(&mut self) -> Result<StateEvent, ClientError> {
        self.seen = None;
        let mut watch = self.agent().watch()?;
        let mut until = self.until;
        while let Some(watched) = watch.next_before(until) {
            let watched = watched?;
            if self.is_there(&watched)? {
                return Ok(watched);
            }
            until = self.until.into_iter().chain(self.again(&watched)).min();
            self.seen = Some(watched.status);
        }
        Err(ClientError::Broken("it has ended".into()))
    }

    fn is_there(&self, watched: &StateEvent) -> Result<bool, ClientError> {
        if self.what == What::Bundle {
            return Ok(watched.bundle.as_ref().is_some_and(|bundle| !bundle.keys.is_empty()));
        }
        if watched.svid.is_none() {
            return Ok(false);
        }
        match self.agent().ready() {
            Ok(()) => Ok(true),
            Err(ClientError::Refused { status: 503, .. }) => Ok(false), // or there is no place to be told so
            Err(e) => Err(e),
        }
    }

    /// When to look again at an SVID that is there and cannot be used. What is not there comes as a change.
    fn again(&self, watched: &StateEvent) -> Option<Instant> {
        if self.what == What::Bundle || watched.svid.is_none() {
            return None;
        }
        let again = Instant::now().checked_add(AGAIN);
        again.into_iter().chain(begins(&watched.status)).min()
    }
}

/// When an SVID that is not valid yet will be: no change tells of that.
fn begins(status: &Status) -> Option<Instant> {
    let begin = humantime::parse_rfc3339_weak(&status.svid.as_ref()?.not_before).ok()?;
    Instant::now().checked_add(begin.duration_since(SystemTime::now()).ok()?)
}

/// The time was up first.
struct InVain {
    what: What,
    timeout: Duration,
    /// What the agent said last. `None`: it is away.
    seen: Option<Status>,
    why: String,
}

impl fmt::Display for InVain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.what {
            What::Svid => "a usable SVID",
            What::Bundle => "a trust bundle",
        };
        write!(f, "waited {} in vain for {what}: ", rough(self.timeout))?;
        match &self.seen {
            None => f.write_str(&self.why),
            Some(status) => {
                write!(f, "the state is {} - {}", status.state, meaning(&status.state))?;
                if let Some(wrong) = &status.last_error {
                    write!(f, ". Last error: {}", error(wrong).trim_end_matches('.'))?;
                }
                write!(f, ". Next step: {}", next_step(status, SystemTime::now()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::words::tests::example;

    #[test]
    fn who_waited_in_vain_reads_what_was_missing() {
        let (status, _) = example();
        let timeout = Duration::from_secs(90);
        let said = |what, seen| {
            let why = ClientError::Broken("it has ended".into()).to_string();
            InVain { what, timeout, seen, why }.to_string()
        };
        let of_svid = said(What::Svid, Some(status));
        assert!(
            of_svid.starts_with(
                "waited 1m 30s in vain for a usable SVID: the state is renewing - this device has a valid identity"
            ) && of_svid.contains(". Last error: Service Unavailable: The database is away. Next step: none: "),
            "{of_svid}"
        );
        let of_bundle = said(What::Bundle, None);
        assert_eq!(
            of_bundle,
            "waited 1m 30s in vain for a trust bundle: the agent did not answer: it has ended"
        );
    }
}
