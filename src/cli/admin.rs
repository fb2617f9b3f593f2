//! `miaf-agent retry` and `miaf-agent renew`, and what every admin command prints.

use std::path::Path;
use std::process::ExitCode;

use super::{Output, Selection, admin_client, fail_on_client, print, print_json, shown};
use miaf_client::ClientError;
use miaf_client::api::Accepted;

pub(super) fn retry(config: &Path, output: &Output, selection: &Selection, new_key: bool) -> ExitCode {
    let agent = selection.of(admin_client(config, output));
    report(config, if new_key { agent.retry_with_new_key() } else { agent.retry() }, output)
}

pub(super) fn renew(config: &Path, output: &Output, selection: &Selection) -> ExitCode {
    report(config, selection.of(admin_client(config, output)).renew(), output)
}

/// Prints the response to an admin command. Success: the agent has accepted the command.
pub(super) fn report(config: &Path, response: Result<Accepted, ClientError>, output: &Output) -> ExitCode {
    match response {
        Ok(accepted) if output.json => print_json(&accepted),
        Ok(Accepted { detail, .. }) => {
            print(&format!("{}\nTo see the result: miaf-agent status\n", shown(detail)))
        }
        Err(e) => fail_on_client(config, &e),
    }
}
