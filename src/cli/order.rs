//! `miaf-agent retry` and `miaf-agent renew`, and what every order prints.

use std::path::Path;
use std::process::ExitCode;

use super::{Output, for_orders, no_answer, print, print_json, shown};
use crate::client::ClientError;
use crate::server::admin::Accepted;

pub(super) fn retry(config: &Path, output: &Output, new_key: bool) -> ExitCode {
    say(config, for_orders(config, output).retry(new_key), output)
}

pub(super) fn renew(config: &Path, output: &Output) -> ExitCode {
    say(config, for_orders(config, output).renew(), output)
}

/// Says what the agent says to an order. Success: it was taken.
pub(super) fn say(config: &Path, answer: Result<Accepted, ClientError>, output: &Output) -> ExitCode {
    match answer {
        Ok(accepted) if output.json => print_json(&accepted),
        Ok(Accepted { detail, .. }) => print(&format!("{}\nHow it goes: miaf-agent status\n", shown(detail))),
        Err(e) => no_answer(config, &e),
    }
}
