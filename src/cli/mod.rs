//! The command line. Commands for a running agent use its [`Client`] and nothing else of it. How
//! they show a status to people is in `render` and `lifetime_bar`.

mod admin;
mod check_config;
mod enroll;
mod lifetime_bar;
mod notify;
mod operator;
mod query;
mod render;
mod retire;
mod run;
mod status;
mod wait;
mod watch;

use std::fmt;
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use serde::Serialize;

use crate::agent;
use crate::config;
use crate::hint::{Hint, Reason};
use miaf_client::api::IdentityName;
use miaf_client::{Client, ClientError};
use miaf_spiffe::SpiffeId;
use miaf_spiffe::text::{self, Excerpt};

/// Limit of characters of one line that is printed for people.
const MAX_LINE: usize = 8192;

/// The identity agent of an industrial edge device.
///
/// It obtains the device's identity from the Margo Identity Service of its trust domain, keeps the
/// key in the TPM, renews the identity before it expires, and hands it to local programs.
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
    /// Run the agent, as systemd starts it.
    Run,
    /// Show the identity of this device, its validity, and what the agent does next.
    Status {
        #[command(flatten)]
        selection: Selection,
        #[command(flatten)]
        output: Output,
    },
    /// Print the device's certificate chain, or its details as JSON.
    Svid {
        #[command(flatten)]
        selection: Selection,
        #[command(flatten)]
        output: Output,
    },
    /// Print the trust anchors that other identities are validated against, as PEM, or the SPIFFE
    /// bundle as JSON.
    Bundle(Output),
    /// Print a line at every change: the state, a new SVID, another trust bundle, an error.
    ///
    /// It runs until it is interrupted. While the agent is not running, it says so on stderr and
    /// waits for it.
    Watch {
        #[command(flatten)]
        selection: Selection,
        #[command(flatten)]
        output: Output,
    },
    /// Wait until there is a valid SVID, or a trust bundle: for scripts, and for programs that need
    /// one to start.
    ///
    /// The agent need not be running yet. The exit status is 0 as soon as it is available, and 1
    /// after the timeout: then stderr says what was missing.
    Wait {
        /// What to wait for.
        #[arg(long = "for", value_enum, default_value_t)]
        what: wait::What,
        /// How long to wait, as in "90s" or "1h 30m".
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "2m")]
        timeout: Duration,
        #[command(flatten)]
        selection: Selection,
        #[command(flatten)]
        output: Output,
    },
    /// Have the agent try again now (root only).
    ///
    /// Everything that was refused or is waiting is tried again within seconds, but no retry-after
    /// delay of the MIS is shortened. The trust bundle that is served is accepted even where its
    /// sequence number went back. The clock of this device is taken as right.
    Retry {
        /// The key of the identity is lost (its TPM was replaced or cleared): enroll with a new
        /// one.
        #[arg(long)]
        new_key: bool,
        /// The identity that --new-key is about. Default: the first.
        #[arg(long, value_name = "NAME", requires = "new_key")]
        identity: Option<IdentityName>,
        #[command(flatten)]
        output: Output,
    },
    /// Have the agent renew the identity now, and not when it is due (root only).
    Renew {
        #[command(flatten)]
        selection: Selection,
        #[command(flatten)]
        output: Output,
    },
    /// Print a certificate signing request (CSR) for an identity whose SVIDs an operator brings (root only).
    ///
    /// The key is created in the TPM, or sealed in software, and stored before the request is
    /// printed. As long as no chain has been installed for it, the same key is requested again.
    Csr {
        /// The SPIFFE ID that the request names as its one URI SAN, for an issuer that takes it from
        /// there. Default: `spiffe_id` in the configuration, if it is set.
        #[arg(long, value_name = "ID")]
        spiffe_id: Option<SpiffeId>,
        /// Write DER and not PEM. With --json, stdout has PEM all the same.
        #[arg(long)]
        der: bool,
        /// Write to this file and not to stdout. One that is there is replaced.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        #[command(flatten)]
        selection: Selection,
        #[command(flatten)]
        output: Output,
    },
    /// Install the certificate chain that was issued for a request of this device (root only).
    ///
    /// It is validated by the same rules as a chain from an MIS, and adopted at once: no program is
    /// restarted. The current SVID stays where the chain is refused.
    ///
    /// The command waits up to 30 s for what becomes of it. The exit status is 0 if it is adopted,
    /// or is stored and will be (one that is not valid yet, or no trust bundle is there yet), and 1
    /// if it is refused.
    Install {
        /// The chain in PEM, leaf first; "-" for stdin.
        #[arg(value_name = "CHAIN")]
        chain: PathBuf,
        #[command(flatten)]
        selection: Selection,
        #[command(flatten)]
        output: Output,
    },
    /// Hand an enrollment token to the agent, for an identity that enrolls over EST (root only).
    ///
    /// The agent stores it, requests the identity with it, and wipes it when it has the certificate.
    /// It is the same as putting the token into the file that `token` under [identity.est] names.
    /// Without --identity it is about the one identity that takes tokens.
    Enroll {
        /// The file with the token, as the operator of the MIS gave it: one line, username:secret; "-"
        /// for stdin. A token is never an argument: every user of the device could read it there.
        #[arg(long, value_name = "FILE")]
        token_file: PathBuf,
        #[command(flatten)]
        selection: Selection,
        #[command(flatten)]
        output: Output,
    },
    /// Check whether the configuration can be used, and if not, show file, line and what to do.
    ///
    /// The exit status is 0 if it can be used, and 78 if not. Run it as the agent's user to see
    /// what the agent may read. Nothing but the configuration is read: not the files that it names.
    CheckConfig(Output),
    /// Restart the unit that `notify` names for an identity, if it is running (root only).
    ///
    /// The path unit miaf-agent-notify@NAME.path runs it after each change of the identity's files,
    /// for programs that read them only when they start.
    Notify {
        /// The identity.
        #[arg(long, value_name = "NAME")]
        identity: IdentityName,
    },
    /// Retire an identity of this device, and request a new one (root only).
    ///
    /// Identity and key are moved aside in the state directory and withdrawn from programs, and so
    /// is the trust bundle where no other identity is in its trust domain. The agent then requests a new identity under its configuration: change that first, for another
    /// trust domain. The new identity may be another one even at the same identity service. Where an
    /// operator brings the certificates, there is none until they bring another.
    Retire {
        /// Do not ask for confirmation.
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        selection: Selection,
        #[command(flatten)]
        output: Output,
    },
}

impl Command {
    /// Whether it has the agent's socket from the configuration.
    fn needs_config(&self) -> bool {
        match self {
            Self::Run | Self::CheckConfig(_) | Self::Notify { .. } => false,
            Self::Bundle(output)
            | Self::Status { output, .. }
            | Self::Svid { output, .. }
            | Self::Watch { output, .. }
            | Self::Wait { output, .. }
            | Self::Retry { output, .. }
            | Self::Renew { output, .. }
            | Self::Csr { output, .. }
            | Self::Install { output, .. }
            | Self::Enroll { output, .. }
            | Self::Retire { output, .. } => output.socket.is_none(),
        }
    }
}

/// The identity that a command is about.
#[derive(Debug, clap::Args)]
struct Selection {
    /// The identity that it is about, by name. Without it: status and watch show all, enroll is about
    /// the one that takes tokens, other commands are about the first.
    #[arg(long, value_name = "NAME")]
    identity: Option<IdentityName>,
}

impl Selection {
    /// The client for the selected identity.
    fn of(&self, client: Client) -> Client {
        match &self.identity {
            Some(name) => client.with_identity(name.clone()),
            None => client,
        }
    }
}

/// Options of a command that connects to the agent: the socket, and the form of the output.
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
/// Limit of a request whose result is useful and not necessary.
const SHORT_LIMIT: Duration = Duration::from_secs(5);

/// Reads the arguments and executes the command. Errors go to stderr.
pub fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => execute(cli),
        // Help and version are printed as everything else is: a failure is noticed.
        Err(e) if !e.use_stderr() => print(&e.render().to_string()),
        Err(e) => {
            // It quotes arguments, which a script may have from elsewhere.
            let message: String = e.render().to_string().chars().take(MAX_LINE).collect();
            let _ = write!(io::stderr(), "{}", text::printable(&message)); // or there is no other place
            u8::try_from(e.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
        }
    }
}

fn execute(cli: Cli) -> ExitCode {
    if cli.command.needs_config()
        && let Some(why) = unreadable(&cli.config)
    {
        return fail_with_hint(&why);
    }
    match cli.command {
        Command::Run => run::run(&cli.config),
        Command::Status { selection, output } => status::run(&cli.config, &output, &selection),
        Command::Csr { spiffe_id, der, out, selection, output } => {
            let form = if der { operator::Form::Der } else { operator::Form::Pem };
            operator::csr(&cli.config, &output, &selection, spiffe_id.as_ref(), form, out.as_deref())
        }
        Command::Install { chain, selection, output } => {
            operator::install(&cli.config, &output, &selection, &chain)
        }
        Command::Enroll { token_file, selection, output } => {
            enroll::run(&cli.config, &output, &selection, &token_file)
        }
        Command::Svid { selection, output } => query::svid(&cli.config, &output, &selection),
        Command::Bundle(output) => query::bundle(&cli.config, &output),
        Command::Watch { selection, output } => watch::run(&cli.config, &output, &selection),
        Command::Wait { what, timeout, selection, output } => {
            wait::run(&cli.config, &output, &selection, what, timeout)
        }
        Command::Retry { new_key, identity, output } => {
            admin::retry(&cli.config, &output, &Selection { identity }, new_key)
        }
        Command::Renew { selection, output } => admin::renew(&cli.config, &output, &selection),
        Command::CheckConfig(output) => check_config::run(&cli.config, &output),
        Command::Notify { identity } => notify::run(&cli.config, &identity),
        Command::Retire { yes, selection, output } => retire::run(&cli.config, &output, &selection, yes),
    }
}

/// Why a configuration file that was given cannot be read. The usual one need not be readable: the
/// sockets are at the usual place then. With another one, a command would reach another agent than
/// the one that is meant.
fn unreadable(config: &Path) -> Option<Reason> {
    if config == Path::new(config::DEFAULT_FILE) {
        return None;
    }
    let what = match agent::place(Some(config)).load() {
        Err(e) if e.is_unreadable() => e.to_string(),
        Ok(_) if !config.exists() && !config::drop_in_directory(config).exists() => {
            format!("{}: there is no such file", Excerpt::of(config.display(), MAX_LINE))
        }
        _ => return None,
    };
    let hint = "Correct --config; or run the same as root; or name the agent's socket with --socket";
    Some(Reason::from(what).with_hint_text(hint))
}

/// Client of the socket for reading: the one in the arguments, else the configured one.
fn reader(config: &Path, output: &Output) -> Client {
    client(config, output, |sockets| sockets.path)
}

/// Client of the socket for admin commands, likewise.
fn admin_client(config: &Path, output: &Output) -> Client {
    client(config, output, |sockets| sockets.admin_path)
}

/// Client of the socket that `which` selects, in the configuration as far as the caller may read it
/// and it can be used.
fn client(config: &Path, output: &Output, which: impl Fn(config::SocketConfig) -> PathBuf) -> Client {
    let source = agent::place(Some(config));
    let loaded = source.load();
    let is_bad = loaded.as_ref().is_err_and(|e| !e.is_denied());
    let configured = || {
        let usable = loaded.or_else(|_| source.salvage().map(|salvaged| salvaged.config));
        usable.map(|config| which(config.socket)).unwrap_or_default()
    };
    let client = Client::new(output.socket.clone().unwrap_or_else(configured));
    // The agent may not have been able to start with it, and only the service manager holds the
    // socket open.
    if is_bad { client.with_limit(SHORT_LIMIT) } else { client }
}

/// Prints an error of the client, and fails.
fn fail_on_client(config: &Path, e: &ClientError) -> ExitCode {
    fail_with_hint(&explain(config, e))
}

/// Describes an error of the client. Where the agent does not run, its configuration may be the
/// cause.
fn explain(config: &Path, e: &ClientError) -> Reason {
    let is_down = matches!(e, ClientError::Connect(..) | ClientError::Silent(_) | ClientError::Broken(_));
    let wrong = agent::place(Some(config)).load().err().filter(|wrong| is_down && !wrong.is_denied());
    match wrong {
        Some(wrong) => {
            let wrong = Reason::of(&wrong);
            Reason { what: format!("{e}. Its configuration cannot be used: {wrong}"), ..wrong }
        }
        None => Reason::of(e),
    }
}

fn print_json(value: &impl Serialize) -> ExitCode {
    print(&json_line(value))
}

fn json_line(value: &impl Serialize) -> String {
    let text = serde_json::to_string(value).unwrap_or_default(); // each type here serialises
    let mut line = text::printable_json(&text).into_owned();
    line.push('\n');
    line
}

fn print(text: &str) -> ExitCode {
    print_bytes(text.as_bytes())
}

fn print_bytes(bytes: &[u8]) -> ExitCode {
    match write(bytes) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if e.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS, // it wants no more
        Err(e) => fail(&format_args!("the output cannot be written: {e}")),
    }
}

fn write(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

fn unknown_identity(name: &IdentityName) -> ExitCode {
    let what = format!("there is no identity \"{name}\"");
    fail_with_hint(&Reason::from(what).with_hint_text("See those that there are: miaf-agent status"))
}

fn fail(e: &dyn fmt::Display) -> ExitCode {
    complain(e);
    ExitCode::FAILURE
}

fn fail_with_hint(e: &dyn Hint) -> ExitCode {
    complain_with_hint(e);
    ExitCode::FAILURE
}

fn complain(what: &dyn fmt::Display) {
    // If stderr is closed, there is no other place.
    let _ = write!(io::stderr(), "{}", message(what, None));
}

/// Prints an error, and its hint on a line of its own.
fn complain_with_hint(e: &dyn Hint) {
    let _ = write!(io::stderr(), "{}", message(e, e.hint().as_deref()));
}

fn message(what: &dyn fmt::Display, hint: Option<&str>) -> String {
    let hint = hint.map(|hint| format!("  Hint: {}\n", shown(hint)));
    format!("miaf-agent: {}\n{}", shown(what), hint.unwrap_or_default())
}

/// A text of the agent on one line. The agent may be an older one that passes on the text of a
/// server, or another program at its socket.
fn shown(text: impl fmt::Display) -> Excerpt {
    Excerpt::of(text, MAX_LINE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hint_is_printed_on_a_line_of_its_own() {
        let of = |e: &dyn Hint| message(e, e.hint().as_deref());
        assert_eq!(of(&Reason::from("it is gone")), "miaf-agent: it is gone\n");
        let hostile = Reason::from("it is\ngone").with_hint_text("Restore\n  it");
        assert_eq!(of(&hostile), "miaf-agent: it is gone\n  Hint: Restore it\n");
    }
}
