//! The command line: one file a command, and what they say of the agent in `words` and `lifetime`. The commands that ask a
//! running agent know its [`Client`] and nothing else.

mod bundle;
mod check_config;
mod lifetime;
mod order;
mod reset_identity;
mod run;
mod status;
mod svid;
mod wait;
mod watch;
mod words;

use std::fmt;
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use serde::Serialize;

use crate::agent;
use crate::client::{Client, ClientError};
use crate::config;
use crate::hint::Hint as _;
use crate::text::{self, Excerpt};

/// Characters of one line that is printed for people.
const MAX_LINE: usize = 8192;

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
    /// Print a line at every change: the state, a new SVID, another trust bundle, an error.
    ///
    /// It goes on until it is interrupted. Where the agent is away, for a restart perhaps, it says so on stderr and waits for it.
    Watch(Output),
    /// Wait until there is a usable SVID, or a trust bundle: for scripts, and for programs that need one to start.
    ///
    /// The agent need not be running yet. The exit status is 0 as soon as it is there, and 1 if it is not in time: then
    /// stderr says what was missing.
    Wait {
        /// What to wait for.
        #[arg(long = "for", value_enum, default_value_t)]
        what: wait::What,
        /// How long, as in "90s" or "1h 30m".
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "2m")]
        timeout: Duration,
        #[command(flatten)]
        output: Output,
    },
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
    /// Check the configuration: whether it can be used, and if not, file, line and what to do.
    ///
    /// The exit status is 0 if it can be used, and 78 if not. Run it as the agent's user to see what the agent may read. Nothing but
    /// the configuration is read: not the files that it names.
    CheckConfig(Output),
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
    /// Print JSON, for programs: one document, or one a line where there are several.
    #[arg(long)]
    json: bool,
    /// The agent's socket, where it is not the one of the configuration.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

/// `EX_CONFIG` of sysexits.h: trying again does not help before the configuration is corrected.
const EXIT_CONFIG: u8 = 78;
/// How long an answer is waited for that is good to have.
const SHORT: Duration = Duration::from_secs(5);

/// Reads the arguments and carries out the command. What fails is said on stderr.
pub fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => carry_out(cli),
        // Help and version are printed as everything else is: whether they could be is seen.
        Err(e) if !e.use_stderr() => print(&e.render().to_string()),
        Err(e) => {
            let _ = e.print(); // there is nobody else to tell
            u8::try_from(e.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
        }
    }
}

fn carry_out(cli: Cli) -> ExitCode {
    match cli.command {
        Command::Run => run::run(&cli.config),
        Command::Status(output) => status::run(&cli.config, &output),
        Command::Svid(output) => svid::run(&cli.config, &output),
        Command::Bundle(output) => bundle::run(&cli.config, &output),
        Command::Watch(output) => watch::run(&cli.config, &output),
        Command::Wait { what, timeout, output } => wait::run(&cli.config, &output, what, timeout),
        Command::Retry { new_key, output } => order::retry(&cli.config, &output, new_key),
        Command::Renew(output) => order::renew(&cli.config, &output),
        Command::CheckConfig(output) => check_config::run(&cli.config, &output),
        Command::ResetIdentity { yes, output } => reset_identity::run(&cli.config, &output, yes),
    }
}

/// The reading socket: the one named, else the one of the configuration.
fn reader(config: &Path, output: &Output) -> Client {
    client(config, output, |sockets| sockets.path)
}

/// The socket for orders, likewise.
fn for_orders(config: &Path, output: &Output) -> Client {
    client(config, output, |sockets| sockets.admin_path)
}

/// Of the configuration as far as the caller may read it, and as far as it can be used.
fn client(config: &Path, output: &Output, which: impl Fn(config::SocketConfig) -> PathBuf) -> Client {
    let place = agent::place(Some(config));
    let loaded = place.load();
    let is_bad = loaded.as_ref().is_err_and(|e| !e.is_denied());
    let configured = || {
        let usable = loaded.or_else(|_| place.salvage().map(|salvaged| salvaged.config));
        usable.map(|config| which(config.socket)).unwrap_or_default()
    };
    let client = Client::new(output.socket.clone().unwrap_or_else(configured));
    // Perhaps nobody has been able to start with it, and only the service manager holds the socket open.
    if is_bad { client.with_limit(SHORT) } else { client }
}

/// No answer, and why there may be none: the configuration that the agent would need, as far as the caller may read it.
fn no_answer(config: &Path, e: &ClientError) -> ExitCode {
    fail(&unanswered(config, e))
}

fn unanswered(config: &Path, e: &ClientError) -> String {
    let is_away = matches!(e, ClientError::Connect(..) | ClientError::Silent(_) | ClientError::Broken(_));
    let wrong = agent::place(Some(config)).load().err().filter(|wrong| is_away && !wrong.is_denied());
    match wrong {
        Some(wrong) => format!("{e}. Its configuration cannot be used: {}", wrong.with_hint()),
        None => e.to_string(),
    }
}

fn print_json(answer: &impl Serialize) -> ExitCode {
    print(&json_line(answer))
}

fn json_line(answer: &impl Serialize) -> String {
    let text = serde_json::to_string(answer).unwrap_or_default(); // what comes here always serialises
    let mut line = text::printable_json(&text).into_owned();
    line.push('\n');
    line
}

fn print(text: &str) -> ExitCode {
    match write(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if e.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS, // the reader has seen enough
        Err(e) => fail(&format_args!("the answer cannot be written: {e}")),
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn fail(e: &dyn fmt::Display) -> ExitCode {
    say(e);
    ExitCode::FAILURE
}

fn say(what: &dyn fmt::Display) {
    let _ = writeln!(io::stderr(), "miaf-agent: {}", shown(what)); // there is nobody else to tell
}

/// A text of the agent's on one line. The agent may be an older one that hands on whatever a server
/// said, or another program on its socket.
fn shown(text: impl fmt::Display) -> Excerpt {
    Excerpt::of(text, MAX_LINE)
}
