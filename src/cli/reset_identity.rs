//! `miaf-agent reset-identity`: asks first, since what a device was in its trust domain is gone afterwards.

use std::fmt;
use std::io::{self, BufRead, IsTerminal as _, Write};
use std::path::Path;
use std::process::ExitCode;

use super::{Output, fail, for_orders, no_answer, order};
use crate::client::{Client, ClientError};
use crate::spiffe::{SpiffeId, TrustDomain};

pub(super) fn run(config: &Path, output: &Output, yes: bool) -> ExitCode {
    let agent = for_orders(config, output);
    let agreed = held(&agent).and_then(|id| {
        let domain = id.trust_domain().clone();
        if yes {
            return Ok(domain);
        }
        if !io::stdin().is_terminal() {
            return Err(NotDone::Unasked(domain));
        }
        confirm(&id, &mut io::stdin().lock(), &mut io::stderr()).map(|()| domain)
    });
    match agreed {
        Ok(domain) => order::say(config, agent.reset_identity(&domain), output),
        Err(NotDone::NoAgent(e)) => no_answer(config, &e),
        Err(why) => fail(&why),
    }
}

/// Why nothing was ordered.
#[derive(Debug)]
enum NotDone {
    NoAgent(ClientError),
    Unintelligible(String),
    NoIdentity,
    Unasked(TrustDomain),
    Declined,
}

impl fmt::Display for NotDone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAgent(e) => e.fmt(f),
            Self::Unintelligible(why) => write!(f, "the agent's status cannot be read: {why}"),
            Self::NoIdentity => f.write_str(
                "this device has no identity, so there is none to leave: it already follows its configuration",
            ),
            Self::Unasked(domain) => write!(
                f,
                "there is no terminal to ask on. To make this device leave the trust domain \"{domain}\" all the same, \
                 add --yes"
            ),
            Self::Declined => f.write_str("that is not its name: nothing was done"),
        }
    }
}

fn held(agent: &Client) -> Result<SpiffeId, NotDone> {
    let status = agent.status().map_err(|e| NotDone::NoAgent(e.of_order()))?;
    let id = status.spiffe_id.ok_or(NotDone::NoIdentity)?;
    SpiffeId::parse(&id).map_err(|e| NotDone::Unintelligible(e.to_string()))
}

fn confirm(id: &SpiffeId, input: &mut impl BufRead, out: &mut impl Write) -> Result<(), NotDone> {
    let domain = id.trust_domain();
    let _ = write!(
        out,
        "This device is {id}.\n\
         It will stop being that: programs on it lose the identity at once, and it asks for a new one as its\n\
         configuration says. The old one is kept aside.\n\
         To go on, type the name of the trust domain that it leaves ({domain}): "
    );
    let _ = out.flush(); // who does not see the question will not answer it
    let mut typed = String::new();
    let read = input.read_line(&mut typed);
    if read.is_ok() && typed.trim() == domain.as_str() { Ok(()) } else { Err(NotDone::Declined) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_name_of_the_trust_domain_will_do() {
        let id = "spiffe://factory.example/margo/device/123e4567-e89b-42d3-a456-426614174000";
        let id = SpiffeId::parse(id).unwrap();
        let typed = |line: &str| {
            let mut asked = Vec::new();
            let outcome = confirm(&id, &mut line.as_bytes(), &mut asked);
            assert!(String::from_utf8(asked).unwrap().contains("(factory.example): "));
            outcome.is_ok()
        };
        assert!(typed("factory.example\n"));
        for no in ["", "\n", "y\n", "yes\n", "other.example\n", "factory\n"] {
            assert!(!typed(no), "{no:?}");
        }
    }
}
