//! What the checks work with: the TPM, the agent's view of it, and a directory for tpm2-tools.

use std::path::Path;
use std::process::{Command, Stdio};

use miaf_agent::keys::KeyError;
use miaf_agent::keys::tpm::{Tcti, Tpm, TpmError};
use tempfile::TempDir;

use crate::swtpm::Swtpm;
use crate::{Failure, connection, persistent};

/// The bench with the TPM on it.
pub(crate) struct Bench {
    /// How the TPM is reached.
    pub(crate) tcti: Tcti,
    /// The agent's own handle to it. Its connection stays open from the first check to the last.
    pub(crate) agent: Tpm,
    /// Whether a resource manager is between, so that others can use the TPM at the same time.
    pub(crate) has_resource_manager: bool,
    /// How many signatures are made, checked and timed.
    pub(crate) rounds: u32,
    /// Whether the TPM may be locked.
    pub(crate) destructive: bool,
    directory: TempDir,
    _swtpm: Option<Swtpm>,
}

impl Bench {
    /// Checks that there is a TPM that responds, that tpm2-tools are there, and that nothing is in
    /// the way.
    pub(crate) fn set_up(tcti: Option<Tcti>, rounds: u32, destructive: bool) -> Result<Self, Failure> {
        tools_are_there()?;
        let (tcti, swtpm) = match tcti {
            Some(tcti) => (tcti, None),
            None => {
                let swtpm = Swtpm::start()?;
                (swtpm.tcti()?, Some(swtpm))
            }
        };
        let agent = Tpm::start(tcti.clone());
        check_response(&agent)?;
        connection::open(&tcti).map_err(|error| {
            format!(
                "the agent has a connection to {tcti}, and another is refused ({error}); use the resource manager, \
                 device:/dev/tpmrm0"
            )
        })?;
        persistent::refuse_if_in_the_way(&tcti)?;
        let has_resource_manager = connection::has_resource_manager(&tcti)?;
        let directory = tempfile::Builder::new().prefix("hw-tests-").tempdir()?;
        Ok(Self { tcti, agent, has_resource_manager, rounds, destructive, directory, _swtpm: swtpm })
    }

    /// Where programs may write.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A program that talks to this TPM, if it is one of tpm2-tools.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.directory())
            .env("TPM2TOOLS_TCTI", self.tcti.to_string())
            .env("TSS2_LOG", "all+none")
            .stdin(Stdio::null());
        command
    }

    /// Runs a program of tpm2-tools. Not while the agent talks to the TPM: the TSS would have the
    /// program inherit the connection, and a software TPM serves one at a time.
    pub(crate) fn tool(&self, program: &str, arguments: &[&str]) -> Result<(), Failure> {
        let output = self.command(program).args(arguments).output()?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("{program} {}: {}", arguments.join(" "), said.trim()).into())
    }
}

/// Says in the agent's own words if the TPM is out of reach or shut to it: every check would only
/// repeat that.
fn check_response(agent: &Tpm) -> Result<(), KeyError> {
    match agent.create_key() {
        // That is for the report.
        Ok(_) | Err(KeyError::Tpm(TpmError::Deviant { .. })) => Ok(()),
        Err(error) => Err(error),
    }
}

fn tools_are_there() -> Result<(), Failure> {
    for program in ["bash", "tpm2_getcap", "tpm2_sign"] {
        let found =
            Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        found.map_err(|error| format!("cannot run {program}: {error}; install bash and tpm2-tools"))?;
    }
    Ok(())
}
