//! The command line: one file a command. The commands that ask a running agent know its socket and nothing else.

mod ask;
mod bundle;
mod run;
mod status;
mod svid;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The identity agent of an industrial edge device.
///
/// It obtains the device's identity from the Margo Identity Service of its trust domain, keeps the key in the TPM,
/// renews the identity before it expires, and hands it to local programs.
#[derive(Debug, Parser)]
#[command(name = "miaf-agent", version, arg_required_else_help = true)]
pub struct Cli {
    /// The configuration file.
    #[arg(long, global = true, value_name = "FILE", default_value = crate::config::DEFAULT_FILE)]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent. systemd starts it so.
    Run,
    /// Show who this device is, until when, and what the agent is doing.
    Status(Output),
    /// Print the device's certificate chain, or its details as JSON.
    Svid(Output),
    /// Print the trust anchors that other identities are checked against, as PEM, or the SPIFFE bundle as JSON.
    Bundle(Output),
}

/// How an answer is printed.
#[derive(Debug, clap::Args)]
struct Output {
    /// Print JSON, for programs.
    #[arg(long)]
    json: bool,
    /// The agent's socket, where it is not the one of the configuration.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

/// Carries out the command. What fails is said on stderr.
pub fn main(cli: Cli) -> ExitCode {
    match cli.command {
        Command::Run => run::run(&cli.config),
        Command::Status(output) => status::run(&cli.config, &output),
        Command::Svid(output) => svid::run(&cli.config, &output),
        Command::Bundle(output) => bundle::run(&cli.config, &output),
    }
}
