//! `hw-tests`: the agent's keys on a real TPM 2.0, and a table of how they fared.

#![forbid(unsafe_code)]

mod bench;
mod checks;
mod connection;
mod description;
mod handshake;
mod interrupt;
mod ledger;
mod persistent;
mod report;
mod swtpm;
mod timings;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use bench::Bench;
use clap::Parser;
use ledger::Ledger;
use miaf_agent::keys::tpm::Tcti;
use report::{Destination, Heading, Report};

/// Tries the agent's keys on a TPM 2.0 and prints a table of how they fared. Leaves the TPM as it
/// found it.
///
/// Exit status: 0 if no check failed, 1 if one did, 2 if the checks could not be made, 130 if it
/// was interrupted.
#[derive(Debug, Parser)]
#[command(name = "hw-tests", version)]
struct Arguments {
    /// The TPM, such as device:/dev/tpmrm0. Without it, a software TPM is started for the purpose.
    #[arg(long)]
    tcti: Option<Tcti>,
    /// Also write the report to this file.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print JSON, for programs.
    #[arg(long)]
    json: bool,
    /// The date in the report, where the clock of the device is not to be trusted.
    #[arg(long, value_name = "TEXT")]
    date: Option<String>,
    /// How many signatures are made, checked and timed. tpm2-tools work at the same time as the
    /// agent for a tenth of them, ten at most.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: u32,
    /// Also lock the TPM, and unlock it again. Only if nothing depends on it. Software TPMs are
    /// always locked.
    #[arg(long)]
    destructive: bool,
}

/// What went wrong, for people.
type Failure = Box<dyn Error + Send + Sync>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    run(&arguments).unwrap_or_else(|error| {
        eprintln!("hw-tests: {error}");
        ExitCode::from(2)
    })
}

fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    interrupt::watch().map_err(|error| format!("cannot watch for signals: {error}"))?;
    let destination = Destination::open(arguments.out.as_deref())?;
    let bench = Bench::set_up(arguments.tcti.clone(), arguments.rounds, arguments.destructive)?;
    let before = Ledger::read(&bench)?;
    let tpm = description::describe(&bench)?;

    let mut report = Report::new(Heading::new(&bench, tpm, arguments.date.clone()));
    for (name, check) in checks::ALL {
        if interrupt::requested() {
            break;
        }
        // The agent's connection stays open: what it leaves in the TPM shows at once, and whose
        // work it was.
        report.add(name, check(&bench).and_then(|verdict| before.still_holds(&bench).map(|_| verdict)));
    }
    if !interrupt::requested() {
        match timings::measure(&bench) {
            Ok(timings) => report.timings = timings,
            Err(error) => report.add("timings", Err(error)),
        }
    }
    for (name, comparison) in ledger::COMPARISONS {
        report.add(name, comparison(&bench, &before));
    }

    let text = if arguments.json { report.json() } else { report.markdown() };
    destination.write(&text)?;
    Ok(if interrupt::requested() {
        eprintln!("hw-tests: interrupted; what had been put in the TPM was taken out again");
        ExitCode::from(130)
    } else {
        ExitCode::from(u8::from(report.failed() > 0))
    })
}
