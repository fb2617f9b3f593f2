//! A software TPM of one's own: own state, own ports, gone when dropped. And the power of software
//! TPMs, cut.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use miaf_agent::keys::tpm::Tcti;
use tempfile::TempDir;
use tss_esapi::constants::StartupType;

use crate::connection::{self, During};
use crate::{Failure, interrupt};

/// A running swtpm.
pub(crate) struct Swtpm {
    process: Child,
    port: u16,
    _state: TempDir,
}

/// How long it may take to start.
const DEADLINE: Duration = Duration::from_secs(20);

impl Swtpm {
    /// Starts a TPM that has not been used before.
    pub(crate) fn start() -> Result<Self, Failure> {
        for port in free_pairs().take(20) {
            if let Some(swtpm) = Self::start_at(port)? {
                return Ok(swtpm);
            }
        }
        Err("swtpm does not start: each of 20 pairs of ports was taken by another program first".into())
    }

    /// `None` if another program took the ports in the meantime.
    fn start_at(port: u16) -> Result<Option<Self>, Failure> {
        let state = tempfile::Builder::new().prefix("hw-tests-swtpm-").tempdir()?;
        let process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .arg("--tpmstate")
            .arg(format!("dir={}", state.path().display()))
            .args(["--server", &format!("type=tcp,port={port}")])
            .args(["--ctrl", &format!("type=tcp,port={}", port + 1)])
            .arg("--pid")
            .arg(format!("file={}", state.path().join("pid").display()))
            // Ctrl-C is for the suite, which still needs the TPM to end in order.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot start swtpm: {error}; install it (apt install swtpm)"))?;
        let mut swtpm = Self { process, port, _state: state };
        let since = Instant::now();
        // It writes its number once it listens.
        while !is_there(&swtpm._state.path().join("pid")) {
            if swtpm.process.try_wait()?.is_some() {
                return Ok(None);
            }
            if since.elapsed() > DEADLINE {
                return Err(format!("timed out after {DEADLINE:?} waiting for swtpm to listen").into());
            }
            interrupt::check()?;
            thread::sleep(Duration::from_millis(5));
        }
        Ok(Some(swtpm))
    }

    pub(crate) fn tcti(&self) -> Result<Tcti, Failure> {
        Ok(format!("swtpm:host=127.0.0.1,port={}", self.port).parse()?)
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn is_there(pid_file: &Path) -> bool {
    std::fs::metadata(pid_file).is_ok_and(|file| file.len() > 0)
}

/// Pairs of free ports below the range from which the system takes those of outgoing connections.
/// The TSS wants the control port right after the other.
fn free_pairs() -> impl Iterator<Item = u16> {
    let start = std::process::id();
    (0..6_000)
        .filter_map(move |step| {
            u16::try_from(20_000 + 2 * (start.wrapping_mul(61).wrapping_add(step) % 6_000)).ok()
        })
        .filter(|port| {
            [*port, port + 1].iter().all(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        })
}

/// Where the power of a software TPM is switched, next to the port for its commands. `None` for a
/// TPM.
pub(crate) fn control_port(tcti: &Tcti) -> Option<SocketAddr> {
    let tcti = tcti.to_string();
    let (host, port) = tcti.strip_prefix("swtpm:host=")?.split_once(",port=")?;
    let host: IpAddr = host.parse().ok()?;
    Some(SocketAddr::new(host, port.parse::<u16>().ok()?.checked_add(1)?))
}

/// Cuts the power of a software TPM, without a word of warning, and gives it back.
pub(crate) fn cut_power(tcti: &Tcti, control: SocketAddr) -> Result<(), Failure> {
    // CMD_INIT of swtpm's control interface (swtpm_ioctls(3)): the number of the command, and no
    // flags.
    const INIT: [u8; 8] = [0, 0, 0, 2, 0, 0, 0, 0];
    let failed = |error| format!("swtpm does not reset the TPM by its control port {control}: {error}");
    let mut connection = TcpStream::connect_timeout(&control, DEADLINE).map_err(failed)?;
    connection.set_read_timeout(Some(DEADLINE)).map_err(failed)?;
    connection.write_all(&INIT).map_err(failed)?;
    let mut result = [0; 4];
    connection.read_exact(&mut result).map_err(failed)?;
    if result != [0; 4] {
        return Err(format!("swtpm refuses to reset the TPM (code {:#x})", u32::from_be_bytes(result)).into());
    }
    // It serves one connection at a time, and the next line needs one of its own.
    drop(connection);
    // The firmware's part.
    connection::open(tcti)?
        .execute_without_session(|context| context.startup(StartupType::Clear))
        .during("TPM2_Startup")
}
