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
        Ok((name, id)) => admin::report(config, agent.with_identity(name).retire(id.trust_domain()), output),
        Err(NotSent::NoResponse(e)) => fail_on_client(config, &e),
        Err(why) => fail_with_hint(&why),
    }
}

fn confirmed(agent: &Client, selection: &Selection, yes: bool) -> Result<(IdentityName, SpiffeId), NotSent> {
    let (name, id) = current_id(agent, selection)?;
    if !yes && !io::stdin().is_terminal() {
        return Err(NotSent::Unconfirmed(id.trust_domain().clone()));
    }
    if !yes {
        confirm(&name, &id, &mut io::stdin().lock(), &mut io::stderr())?;
    }
    Ok((name, id))
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

fn current_id(agent: &Client, selection: &Selection) -> Result<(IdentityName, SpiffeId), NotSent> {
    let status = agent.status().map_err(|e| NotSent::NoResponse(e.of_admin_command()))?;
    let identity = status.identity(selection.identity.as_ref()).ok_or(NotSent::UnknownIdentity)?;
    let id = identity.spiffe_id.as_deref().ok_or(NotSent::NoIdentity)?;
    let id = SpiffeId::parse(id).map_err(|e| NotSent::Unintelligible(e.to_string()))?;
    Ok((identity.name.clone(), id))
}

fn confirm(
    name: &IdentityName,
    id: &SpiffeId,
    input: &mut impl BufRead,
    out: &mut impl Write,
) -> Result<(), NotSent> {
    let domain = id.trust_domain();
    let _ = write!(
        out,
        "The identity \"{name}\" is {id}.\n\
         It will be retired: programs lose it at once, and the agent requests a new one as the\n\
         configuration says. The retired one stays in the state directory.\n\
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
            let outcome = confirm(&IdentityName::DEVICE, &id, &mut line.as_bytes(), &mut question);
            assert!(String::from_utf8(question).unwrap().contains("(factory.example): "));
            outcome.is_ok()
        };
        assert!(typed("factory.example\n"));
        for no in ["", "\n", "y\n", "yes\n", "other.example\n", "factory\n"] {
            assert!(!typed(no), "{no:?}");
        }
    }
}
