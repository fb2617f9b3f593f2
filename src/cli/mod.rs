//! The command line: one file a command. The commands that ask a running agent know its socket and nothing else.

mod ask;
mod bundle;
mod order;
mod reset_identity;
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
    /// Have the agent try again now (root only).
    ///
    /// Everything that was refused or is being waited for is tried again within seconds, as far as the MIS has not asked to be left
    /// alone; the trust bundle that is served is accepted even where its sequence number went back; the clock of this
    /// device is taken as right.
    Retry {
        /// The device's key is lost (its TPM was replaced or cleared): enroll with a new key.
        #[arg(long)]
        new_key: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Have the agent renew the identity now, and not when it is due (root only).
    Renew(Output),
    /// Have the device leave its trust domain, on purpose, and start as new (root only).
    ///
    /// Identity, key and trust bundle are put aside in the state folder and withdrawn from programs. The device then asks
    /// for a new identity under its configuration: change that first, if it is to go elsewhere. Its new identity may be
    /// another even where it goes back to the same identity service.
    ResetIdentity {
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        output: Output,
    },
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
        Command::Retry { new_key, output } => order::retry(&cli.config, &output, new_key),
        Command::Renew(output) => order::renew(&cli.config, &output),
        Command::ResetIdentity { yes, output } => reset_identity::run(&cli.config, &output, yes),
    }
}
