//! `miaf-agent retire`: asks for confirmation first, since the device loses the identity.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, BufRead, IsTerminal as _, Write};
use std::path::Path;
use std::process::ExitCode;

use super::{Output, Selection, admin, admin_client, fail_on_client, fail_with_hint};
use crate::hint::Hint;
use miaf_client::api::IdentityName;
use miaf_client::{Client, ClientError};
use miaf_spiffe::{SpiffeId, TrustDomain};

pub(super) fn run(config: &Path, output: &Output, selection: &Selection, yes: bool) -> ExitCode {
    let agent = admin_client(config, output);
    match confirmed(&agent, selection, yes) {
        // What is retired is the identity that was confirmed, whichever is the first by now.
        Ok(Confirmed { name, id, .. }) => {
            admin::report(config, agent.with_identity(name).retire(id.trust_domain()), output)
        }
        Err(NotSent::NoResponse(e)) => fail_on_client(config, &e),
        Err(why) => fail_with_hint(&why),
    }
}

/// The identity that is to be retired.
struct Confirmed {
    name: IdentityName,
    id: SpiffeId,
    /// An operator brings its SVIDs.
    is_by_operator: bool,
}

fn confirmed(agent: &Client, selection: &Selection, yes: bool) -> Result<Confirmed, NotSent> {
    let identity = current_identity(agent, selection)?;
    if !yes && !io::stdin().is_terminal() {
        return Err(NotSent::Unconfirmed(identity.id.trust_domain().clone()));
    }
    if !yes {
        confirm(&identity, &mut io::stdin().lock(), &mut io::stderr())?;
    }
    Ok(identity)
}

/// Why no command was sent.
#[derive(Debug)]
enum NotSent {
    NoResponse(ClientError),
    Unintelligible(String),
    UnknownIdentity,
    NoIdentity,
    Unconfirmed(TrustDomain),
    Declined,
}

impl fmt::Display for NotSent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoResponse(e) => e.fmt(f),
            Self::Unintelligible(why) => write!(f, "the agent's status cannot be read: {why}"),
            Self::UnknownIdentity => f.write_str("there is no identity with this name"),
            Self::NoIdentity => f.write_str(
                "the identity has no SVID, so there is nothing to retire: it already follows its configuration",
            ),
            Self::Unconfirmed(domain) => write!(
                f,
                "there is no terminal to confirm that the identity in the trust domain \"{domain}\" is to be retired"
            ),
            Self::Declined => f.write_str("that is not the name of the trust domain: nothing was done"),
        }
    }
}

impl Hint for NotSent {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::NoResponse(e) => e.hint(),
            Self::Unconfirmed(_) => Some("Add --yes to retire it without confirmation".into()),
            Self::UnknownIdentity => Some("See those that there are: miaf-agent status".into()),
            Self::Unintelligible(_) | Self::NoIdentity | Self::Declined => None,
        }
    }
}

fn current_identity(agent: &Client, selection: &Selection) -> Result<Confirmed, NotSent> {
    let status = agent.status().map_err(|e| NotSent::NoResponse(e.of_admin_command()))?;
    let identity = status.identity(selection.identity.as_ref()).ok_or(NotSent::UnknownIdentity)?;
    let id = identity.spiffe_id.as_deref().ok_or(NotSent::NoIdentity)?;
    let id = SpiffeId::parse(id).map_err(|e| NotSent::Unintelligible(e.to_string()))?;
    Ok(Confirmed { name: identity.name.clone(), id, is_by_operator: identity.is_by_operator() })
}

fn confirm(identity: &Confirmed, input: &mut impl BufRead, out: &mut impl Write) -> Result<(), NotSent> {
    let Confirmed { name, id, is_by_operator } = identity;
    let domain = id.trust_domain();
    let next = match is_by_operator {
        true => "and has no new one until an\noperator brings it",
        false => "and the agent requests a new one as the\nconfiguration says",
    };
    let _ = write!(
        out,
        "The identity \"{name}\" is {id}.\n\
         It will be retired: programs lose it at once, {next}. The retired one stays in the state directory.\n\
         To continue, type the name of its trust domain ({domain}): "
    );
    let _ = out.flush(); // without the question, there is no confirmation
    let mut typed = String::new();
    let read = input.read_line(&mut typed);
    if read.is_ok() && typed.trim() == domain.as_str() { Ok(()) } else { Err(NotSent::Declined) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn confirmation_is_the_name_of_the_trust_domain() {
        let id = "spiffe://factory.example/margo/device/123e4567-e89b-42d3-a456-426614174000";
        let id = SpiffeId::parse(id).unwrap();
        let typed = |line: &str| {
            let mut question = Vec::new();
            let name = IdentityName::DEVICE;
            let identity = Confirmed { name, id: id.clone(), is_by_operator: line.is_empty() };
            let outcome = confirm(&identity, &mut line.as_bytes(), &mut question);
            let question = String::from_utf8(question).unwrap();
            assert!(question.contains("(factory.example): "), "{question}");
            assert_eq!(question.contains("until an\noperator brings it"), line.is_empty(), "{question}");
            outcome.is_ok()
        };
        assert!(typed("factory.example\n"));
        for no in ["", "\n", "y\n", "yes\n", "other.example\n", "factory\n"] {
            assert!(!typed(no), "{no:?}");
        }
    }
}
