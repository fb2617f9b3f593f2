//! `miaf-agent retry` and `miaf-agent renew`, and what every order prints.

use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

use super::Output;
use super::ask::Admin;
use super::status::fail;
use crate::deliver::order::{Accepted, Address};

pub(super) fn retry(config: &Path, output: &Output, new_key: bool) -> ExitCode {
    let body = if new_key { json!({ "newKey": true }).to_string() } else { String::new() };
    give(&Admin::new(config, output), output, Address::Retry, body)
}

pub(super) fn renew(config: &Path, output: &Output) -> ExitCode {
    give(&Admin::new(config, output), output, Address::Renew, String::new())
}

/// Gives an order, and says what the agent says to it. Success: it was taken.
pub(super) fn give(admin: &Admin, output: &Output, address: Address, body: String) -> ExitCode {
    let answer = match admin.order(address, body.into_bytes()) {
        Ok(answer) => answer,
        Err(e) => return fail(&e),
    };
    if output.json {
        print!("{}", String::from_utf8_lossy(&answer));
        return ExitCode::SUCCESS;
    }
    match serde_json::from_slice::<Accepted>(&answer) {
        Ok(Accepted { detail, .. }) => {
            println!("{detail}\nHow it goes: miaf-agent status");
            ExitCode::SUCCESS
        }
        Err(e) => fail(&e),
    }
}
