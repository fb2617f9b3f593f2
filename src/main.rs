//! `miaf-agent`

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;
use miaf_agent::cli::{self, Cli};

fn main() -> ExitCode {
    cli::main(Cli::parse())
}
