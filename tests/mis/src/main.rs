//! `development-mis`: the development MIS from the command line.

#![forbid(unsafe_code)]

use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum};
use development_mis::{
    Admission, Documents, Entry, Error, EstBaseUri, EstPolicy, IssuerAlgorithm, IssuingMode, KeyKind,
    LONGEST_LIFETIME, Limit, MintKey, MintSpec, Mis, Policy, Result, SHORTEST_LIFETIME, Settings,
};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::signal::unix::{SignalKind, signal};

/// A small, strict Margo Identity Service (MIAF v0, or the released documents, and EST) for demonstrations
/// and tests. It makes its own certificates in a directory. Not for production: the private keys
/// lie there in plain files.
#[derive(Parser)]
#[command(version, max_term_width = 100, args_conflicts_with_subcommands = true)]
struct Program {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    serve: Option<Arguments>,
}

#[derive(Subcommand)]
enum Command {
    /// Sign an SVID of a WFM or a WFM Client, as the operator: for a CSR, or with a new key
    Mint(Mint),
    /// Create an Enrollment Token for EST, and print it: username:secret. The MIS has to run
    Token(Token),
    /// Send a request to the MIS that runs, as JSON, and print its response: {"command":"record"}
    Admin(Admin),
}

#[derive(Args)]
#[command(max_term_width = 100)]
struct Token {
    /// Directory of the MIS that runs
    #[arg(long, value_name = "DIR")]
    directory: PathBuf,

    /// SPIFFE ID that it authorizes
    #[arg(long, value_name = "ID")]
    spiffe_id: String,

    /// How long it is valid
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "1h")]
    valid: Duration,

    /// For any number of keys, and not for one
    #[arg(long)]
    reusable: bool,
}

#[derive(Args)]
#[command(max_term_width = 100)]
struct Admin {
    /// Directory of the MIS that runs
    #[arg(long, value_name = "DIR")]
    directory: PathBuf,

    /// The request
    #[arg(value_name = "JSON")]
    request: String,
}

#[derive(Args)]
#[command(max_term_width = 100)]
struct Mint {
    /// Directory of the MIS, which may be running
    #[arg(long, value_name = "DIR")]
    directory: PathBuf,

    /// Certificate signing request, PEM or DER
    #[arg(long, value_name = "FILE", required_unless_present = "key_out", conflicts_with = "key_out")]
    csr: Option<PathBuf>,

    /// Make the key too, and write it here (PKCS#8 PEM)
    #[arg(long, value_name = "FILE", requires = "spiffe_id")]
    key_out: Option<PathBuf>,

    /// Kind of the key to make
    #[arg(long, value_enum, default_value_t = KeyType::P256, requires = "key_out")]
    key_type: KeyType,

    /// SPIFFE ID; without it, the one URI SAN of the CSR
    #[arg(long, value_name = "ID")]
    spiffe_id: Option<String>,

    /// DNS name in addition; may be repeated
    #[arg(long, value_name = "NAME", action = ArgAction::Append)]
    dns: Vec<String>,

    /// Lifetime in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = development_mis::MINTED_LIFETIME.as_secs())]
    ttl: u64,

    /// Who signs it, where that is not as the directory was made: the root, or an intermediate in
    /// the chain
    #[arg(long, value_enum)]
    mode: Option<Mode>,

    /// The certificate chain, PEM
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// Write the trust bundle in the released form here
    #[arg(long, value_name = "FILE")]
    bundle_out: Option<PathBuf>,
}

#[derive(Args)]
struct Arguments {
    /// Directory for keys, certificates and the devices' bindings; made where missing
    #[arg(long, value_name = "DIR")]
    directory: PathBuf,

    /// Address and port to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8443")]
    listen: SocketAddr,

    /// Name or IP address in the server's certificate; may be repeated, the first one is in URLs
    #[arg(long = "host", value_name = "NAME", default_values = ["127.0.0.1", "localhost", "::1"])]
    hosts: Vec<String>,

    /// Form of the public documents; with the released ones, nothing is issued over the network
    #[arg(long, value_enum, default_value_t = Form::V0)]
    documents: Form,

    /// Have no discovery document
    #[arg(long)]
    no_discovery: bool,

    /// Accept binding assertions of this WFM, by its wfm-id; may be repeated
    #[arg(long = "wfm", value_name = "ID", action = ArgAction::Append)]
    wfms: Vec<String>,

    /// The trust domain
    #[arg(long, value_name = "NAME", default_value = "factory.example")]
    trust_domain: String,

    /// Who signs SVIDs: the root itself, or an intermediate that travels in the chain
    #[arg(long, value_enum, default_value_t = Mode::Root)]
    mode: Mode,

    /// Algorithm of the issuing authorities: p256 or rsa-pss with v0 documents; rsa-pss, rsa-pkcs1
    /// and ed25519 need the openssl command
    #[arg(long, value_enum, default_value_t = Algorithm::P256)]
    algorithm: Algorithm,

    /// Validity of an SVID: 60s to 1825d
    #[arg(long, value_name = "TIME", value_parser = lifetime, default_value = "24h")]
    svid_lifetime: Duration,

    /// How far before issuance an SVID's validity begins
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "30s")]
    backdate: Duration,

    /// New devices wait for admission and are told to come back after this time
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pending: Option<Duration>,

    /// With --pending: admit a device so long after its first request
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "pending")]
    admit_after: Option<Duration>,

    /// Refuse a new key when a known device enrolls again
    #[arg(long)]
    no_rotation_at_enrollment: bool,

    /// Refuse a new key at renewal
    #[arg(long)]
    no_rotation_at_renewal: bool,

    /// Successful renewals per device and time, such as 5/24h; "none" for no limit
    #[arg(long, value_name = "N/TIME", value_parser = limit, default_value = "60/1m")]
    renewal_limit: Rate,

    /// Successful re-enrollments per device and time
    #[arg(long, value_name = "N/TIME", value_parser = limit, default_value = "60/1m")]
    enrollment_limit: Rate,

    /// spiffe_refresh_hint of the trust bundle; 0s leaves it out
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "5m")]
    refresh_hint: Duration,

    /// spiffe_sequence of the trust bundle in a new directory
    #[arg(long, value_name = "N", default_value_t = 1)]
    first_sequence: u64,

    /// PEM file with a further manufacturer CA; may be repeated
    #[arg(long, value_name = "FILE", action = ArgAction::Append)]
    factory_ca: Vec<PathBuf>,

    /// Make another sample device, factory-NAME.pem and .key; may be repeated
    #[arg(long = "device", value_name = "NAME", action = ArgAction::Append)]
    devices: Vec<String>,

    /// Make a device certificate, factory-NAME.pem, for a public key in a PEM file (of a key in a
    /// TPM, say); may be repeated
    #[arg(long, value_name = "NAME=FILE", value_parser = named_file, action = ArgAction::Append)]
    certify: Vec<(String, PathBuf)>,

    /// Refuse bad client certificates in the TLS handshake and not with a 401
    #[arg(long)]
    refuse_in_handshake: bool,

    /// Name the EST endpoint in the discovery document
    #[arg(long)]
    est: bool,

    /// Intermediates below the issuing authority, over EST
    #[arg(long, value_name = "N", default_value_t = 1)]
    est_intermediates: usize,

    /// Hold each first enrollment over EST until the operator releases its SPIFFE ID
    #[arg(long)]
    est_review: bool,

    /// Permit a subject and a SAN in the CSR of a first enrollment over EST, as general clients
    /// send them
    #[arg(long)]
    est_names_in_csr: bool,

    /// Issue device identities over EST too, which is not standardized
    #[arg(long)]
    est_device_ids: bool,

    /// Make or complete the directory and exit
    #[arg(long)]
    pki_only: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    Root,
    Intermediate,
}

#[derive(Clone, Copy, ValueEnum)]
enum Algorithm {
    P256,
    RsaPss,
    RsaPkcs1,
    P384,
    Ed25519,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Form {
    V0,
    Released,
}

#[derive(Clone, Copy, ValueEnum)]
enum KeyType {
    P256,
    P384,
    Ed25519,
    Rsa2048,
    Rsa3072,
}

impl From<Mode> for IssuingMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Root => Self::Root,
            Mode::Intermediate => Self::Intermediate,
        }
    }
}

/// `None` is no limit. (A name of its own: clap reads `Option` as "may be left out".)
#[derive(Clone, Copy)]
struct Rate(Option<Limit>);

fn main() -> ExitCode {
    let program = Program::parse();
    let done = match (program.command, program.serve) {
        (Some(Command::Mint(arguments)), _) => mint(arguments),
        (Some(Command::Token(arguments)), _) => token(arguments),
        (Some(Command::Admin(Admin { directory, request })), _) => {
            development_mis::ask(&directory, &request).map(|answer| println!("{answer:#}"))
        }
        (None, Some(arguments)) => run(arguments),
        (None, None) => Program::command()
            .error(clap::error::ErrorKind::MissingRequiredArgument, "--directory <DIR> is required")
            .exit(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("development-mis: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let (pki_only, over_est) = (arguments.pki_only, arguments.est);
    let settings = settings(arguments);
    if pki_only {
        Mis::make_directory(&settings)?;
        println!("certificates and keys are in {}", settings.directory.display());
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        // Before the line that says "listening": its reader may stop this process at once.
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mis = Mis::start(settings)?;
        explain(&mis, over_est)?;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        drop(mis);
        println!("ended");
        Ok(())
    })
}

fn token(arguments: Token) -> Result<()> {
    let request = serde_json::json!({
        "command": "token",
        "spiffeId": arguments.spiffe_id,
        "validSeconds": arguments.valid.as_secs(),
        "reusable": arguments.reusable,
    });
    let answer = development_mis::ask(&arguments.directory, &request.to_string())?;
    let text = |member: &str| answer[member].as_str().unwrap_or_default().to_owned();
    println!("{}:{}", text("username"), text("secret"));
    Ok(())
}

fn mint(arguments: Mint) -> Result<()> {
    let kind = match arguments.key_type {
        KeyType::P256 => KeyKind::P256,
        KeyType::P384 => KeyKind::P384,
        KeyType::Ed25519 => KeyKind::Ed25519,
        KeyType::Rsa2048 => KeyKind::Rsa2048,
        KeyType::Rsa3072 => KeyKind::Rsa3072,
    };
    let key = match &arguments.csr {
        Some(file) => {
            MintKey::Csr(fs::read(file).map_err(|error| Error::new(format!("{}: {error}", file.display())))?)
        }
        None => MintKey::New(kind),
    };
    let minted = development_mis::mint(
        &arguments.directory,
        &MintSpec {
            key,
            spiffe_id: arguments.spiffe_id,
            dns: arguments.dns,
            ttl: Duration::from_secs(arguments.ttl),
            mode: arguments.mode.map(IssuingMode::from),
            faults: Vec::new(),
        },
    )?;
    minted.write(&arguments.out, arguments.key_out.as_deref())?;
    if let Some(file) = &arguments.bundle_out {
        let bundle = development_mis::bundle_of(&arguments.directory)?;
        fs::write(file, bundle).map_err(|error| Error::new(format!("{}: {error}", file.display())))?;
    }
    println!("{} in {}", minted.spiffe_id, arguments.out.display());
    Ok(())
}

fn settings(arguments: Arguments) -> Settings {
    let admission = match arguments.pending {
        None => Admission::Open,
        Some(time) => Admission::Pending {
            retry_after: time.as_secs(),
            admitted: Default::default(),
            after: arguments.admit_after,
        },
    };
    let hint = arguments.refresh_hint.as_secs();
    let mut policy = Policy {
        documents: match arguments.documents {
            Form::V0 => Documents::V0,
            Form::Released => Documents::Released,
        },
        discovery: !arguments.no_discovery,
        svid_lifetime: arguments.svid_lifetime,
        backdate: arguments.backdate,
        admission,
        rotation_at_enrollment: !arguments.no_rotation_at_enrollment,
        rotation_at_renewal: !arguments.no_rotation_at_renewal,
        enrollment_limit: arguments.enrollment_limit.0,
        renewal_limit: arguments.renewal_limit.0,
        refresh_hint: (hint > 0).then_some(hint),
        refuse_in_handshake: arguments.refuse_in_handshake,
        est: EstPolicy {
            base_uri: if arguments.est { EstBaseUri::Own } else { EstBaseUri::Absent },
            intermediates: arguments.est_intermediates,
            review: arguments.est_review,
            names_in_csr: arguments.est_names_in_csr,
            device_ids: arguments.est_device_ids,
            ..EstPolicy::default()
        },
        ..Policy::default()
    };
    for wfm in &arguments.wfms {
        policy.accept_wfm(wfm);
    }
    Settings {
        directory: arguments.directory,
        listen: arguments.listen,
        hosts: arguments.hosts,
        trust_domain: arguments.trust_domain,
        mode: arguments.mode.into(),
        algorithm: match arguments.algorithm {
            Algorithm::P256 => IssuerAlgorithm::P256,
            Algorithm::RsaPss => IssuerAlgorithm::RsaPss,
            Algorithm::RsaPkcs1 => IssuerAlgorithm::RsaPkcs1,
            Algorithm::P384 => IssuerAlgorithm::P384,
            Algorithm::Ed25519 => IssuerAlgorithm::Ed25519,
        },
        first_sequence: arguments.first_sequence,
        factory_cas: arguments.factory_ca,
        devices: arguments.devices,
        certify: arguments.certify,
        server_fault: None,
        offer_resumption: false,
        policy,
        observer: Some(Arc::new(log)),
    }
}

fn log(entry: &Entry) {
    println!("{} {entry}", httpdate::fmt_http_date(SystemTime::now()));
}

/// The part of a configuration for one WFM Client that a token enrolls.
const IDENTITY_OVER_EST: &str = "\
[[identity]]
name = \"line-7\"
enroll = \"est\"

[identity.est]
token = \"file:line-7.token\"
";

/// Commands that put the CA certificate and a token into the directory of the configuration. The
/// directory of the MIS stays closed to the agent's user.
fn how_to_bring_a_token(mis: &Mis, directory: &Path) -> String {
    let id = mis.est().client_id("wfm-1", "line-7");
    let quoted = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', "'\\''"));
    let (ca, directory) = (quoted(&directory.join("tls-ca.pem")), quoted(directory));
    format!(
        "
In the directory of that config.toml, the CA certificate and a token:

cp {ca} mis-ca.pem
(umask 077; development-mis token --directory {directory} \\
    --spiffe-id {id} >line-7.new)
# For an agent with a user of its own: chgrp miaf-agent line-7.new; chmod 0640 line-7.new
mv line-7.new line-7.token
"
    )
}

/// Prints what a device needs, to enroll over EST or with its factory certificate.
fn explain(mis: &Mis, over_est: bool) -> Result<()> {
    let absolute = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let ca = absolute(&mis.ca_file());
    let certificate = absolute(&mis.factory_cert());
    let key = absolute(&mis.factory_key());
    let (ca_file, enrollment, token) = match over_est {
        true => {
            let token = how_to_bring_a_token(mis, &absolute(mis.directory()));
            (PathBuf::from("mis-ca.pem"), IDENTITY_OVER_EST.to_owned(), token)
        }
        false => {
            let key = format!("file:{}", key.display());
            let bootstrap = format!(
                "[bootstrap]\nmethod = \"factory-cert-mtls\"\ncert_file = {certificate:?}\nkey = {key:?}\n"
            );
            (ca.clone(), bootstrap, String::new())
        }
    };
    println!(
        "\
Development MIS (MIAF v0 and EST) of the trust domain {domain}. For tests and demonstrations only.

  discovery document   {discovery}
  EST endpoint         {est}
  trusts this server   {ca}
  a device to enroll   {certificate}
                       {key}

A config.toml for an installed agent:

[mis]
discovery_url = \"{discovery}\"
trust_domain = \"{domain}\"

[mis.trust]
ca_file = {ca_file:?}

[key]
provider = \"tpm\"          # or \"software\", where the machine has no TPM

{enrollment}{token}",
        domain = mis.trust_domain(),
        discovery = mis.discovery_url(),
        est = mis.est_url(),
        ca = ca.display(),
        certificate = certificate.display(),
        key = key.display(),
    );
    println!("listening on {}", mis.url());
    Ok(())
}

/// `90s`, `5m`, `24h`, `90d`, or `200ms`.
fn duration(text: &str) -> std::result::Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err("write 200ms, 60s, 5m, 24h or 90d".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| format!("{text:?} has no number"))?;
    number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(|| format!("{text:?} is too long"))
}

fn named_file(text: &str) -> std::result::Result<(String, PathBuf), String> {
    let (name, file) = text.split_once('=').ok_or("write NAME=FILE")?;
    Ok((name.to_owned(), file.into()))
}

fn lifetime(text: &str) -> std::result::Result<Duration, String> {
    let time = duration(text)?;
    if !(SHORTEST_LIFETIME..=LONGEST_LIFETIME).contains(&time) {
        return Err("an SVID lives from 60s to 1825d (five years)".to_owned());
    }
    Ok(time)
}

fn limit(text: &str) -> std::result::Result<Rate, String> {
    if text == "none" {
        return Ok(Rate(None));
    }
    let (number, window) = text.split_once('/').ok_or("write 5/24h, or none")?;
    let successes = number.parse().map_err(|_| format!("{number:?} is not a number"))?;
    if successes == 0 {
        return Err("at least one success has to be possible".to_owned());
    }
    Ok(Rate(Some(Limit { successes, window: duration(window)? })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Program::command().debug_assert();
    }

    #[test]
    fn times_are_parsed() {
        assert_eq!(duration("200ms"), Ok(Duration::from_millis(200)));
        assert_eq!(duration("90d"), Ok(Duration::from_secs(90 * 86_400)));
        for wrong in ["", "5", "s", "-1s", "5 s", "99999999999999999999s", "9999999999999999d"] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
        assert!(lifetime("59s").is_err());
        assert!(lifetime("1826d").is_err());
        assert!(lifetime("1825d").is_ok());
    }
}
