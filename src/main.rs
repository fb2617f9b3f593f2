//! `miaf-agent`

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    miaf_agent::cli::main()
}
