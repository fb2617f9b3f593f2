//! `development-wfm`: the development WFM from the command line.

#![forbid(unsafe_code)]

use clap::{ArgAction, Parser};
use development_wfm::{Credential, Entry, Error, Policy, Result, Settings, Wfm};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

/// A small, strict Workload Fleet Manager for demonstrations and tests: onboarding of WFM Clients
/// and their deployments, over mTLS with SVIDs. Not for production.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    /// The WFM's SVID, PEM, leaf first (development-mis mint)
    #[arg(long, value_name = "FILE")]
    svid: PathBuf,

    /// Its key, PKCS#8 PEM
    #[arg(long, value_name = "FILE")]
    key: PathBuf,

    /// The trust bundle: SPIFFE bundle, Bundle Map or PEM
    #[arg(long, value_name = "FILE")]
    bundle: PathBuf,

    /// Base URL of the MIS that binding assertions are for
    #[arg(long, value_name = "URL")]
    mis: String,

    /// Address and port to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8084")]
    listen: SocketAddr,

    /// Host in the printed URL
    #[arg(long, value_name = "NAME", default_value = "127.0.0.1")]
    host: String,

    /// Path before those of the API, such as /v1alpha2/margo
    #[arg(long, value_name = "PATH", default_value = "")]
    base_path: String,

    /// Accept this WFM Client, by its SPIFFE ID; may be repeated
    #[arg(long = "accept", value_name = "ID", action = ArgAction::Append)]
    accepted: Vec<String>,

    /// Do not accept a client because it was onboarded: only those of --accept
    #[arg(long)]
    no_accept_onboarded: bool,

    /// Onboard a client for this device only, by its SPIFFE ID; may be repeated
    #[arg(long = "device", value_name = "ID", action = ArgAction::Append)]
    devices: Vec<String>,

    /// Have no onboarding call, as released Margo
    #[arg(long)]
    no_onboarding: bool,

    /// Refuse clients without a valid SVID in the TLS handshake and not with a 401
    #[arg(long)]
    refuse_in_handshake: bool,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("development-wfm: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let failed = |error: std::io::Error| Error::new(error.to_string());
    let devices = (!arguments.devices.is_empty()).then(|| arguments.devices.into_iter().collect());
    let settings = Settings {
        listen: arguments.listen,
        host: arguments.host,
        base_path: arguments.base_path,
        policy: Policy {
            accepted: arguments.accepted.into_iter().collect(),
            accept_onboarded: !arguments.no_accept_onboarded,
            onboarding: !arguments.no_onboarding,
            devices,
            refuse_in_handshake: arguments.refuse_in_handshake,
            ..Policy::default()
        },
        observer: Some(Arc::new(|entry: &Entry| println!("{entry}"))),
        ..Settings::new(Credential::new(arguments.svid, arguments.key), arguments.bundle, arguments.mis)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
    runtime.block_on(async {
        // Before the line that says "listening": its reader may stop this process at once.
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let wfm = Wfm::start(settings)?;
        println!("Development WFM {}. For tests and demonstrations only.", wfm.spiffe_id());
        println!("listening on {}", wfm.url());
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        drop(wfm);
        println!("ended");
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
