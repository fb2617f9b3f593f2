//! The admin socket: one JSON request and one JSON response for each connection, on one line each.

use super::admin::Est;
use crate::service::Service;
use development_server::{Context, Error, Result};
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Its name in the MIS's directory.
pub const ADMIN_SOCKET: &str = "admin.sock";
/// The longest request, in bytes.
const LIMIT: u64 = 64 * 1024;
/// How long a caller may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The listening socket. Dropping it ends its thread and removes it.
pub struct AdminSocket {
    path: PathBuf,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl AdminSocket {
    /// Listens in this directory; only its owner may connect.
    ///
    /// # Errors
    ///
    /// The system's; a path that is too long for a socket is one.
    pub fn open(directory: &Path, service: Arc<Service>) -> Result<Self> {
        let path = directory.join(ADMIN_SOCKET);
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).context(path.display())?;
        fs::set_permissions(&path, Permissions::from_mode(0o600)).context(path.display())?;
        let ending = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ending);
        let serve = move || {
            for stream in listener.incoming() {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                // One after the other: an operator's commands are few and short.
                let _ = stream.map(|stream| answer(&service, stream));
            }
        };
        let thread = thread::Builder::new().name("admin-socket".to_owned()).spawn(serve)?;
        Ok(Self { path, ending, thread: Some(thread) })
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
        let woken = UnixStream::connect(&self.path).is_ok();
        let _ = fs::remove_file(&self.path);
        if let Some(thread) = self.thread.take().filter(|_| woken) {
            let _ = thread.join();
        }
    }
}

fn answer(service: &Service, stream: UnixStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut request = Vec::new();
    BufReader::new((&stream).take(LIMIT)).read_until(b'\n', &mut request)?;
    let mut line = Est(service).execute(&request).to_string();
    line.push('\n');
    (&stream).write_all(line.as_bytes())
}

/// Sends one request, a JSON text, to the MIS that runs in this directory, and returns its response.
///
/// # Errors
///
/// No MIS that runs there, or the error that it reports.
pub fn ask(directory: &Path, request: &str) -> Result<serde_json::Value> {
    let path = directory.join(ADMIN_SOCKET);
    let mut stream =
        UnixStream::connect(&path).context(format!("{}: is the MIS running?", path.display()))?;
    stream.write_all(request.replace('\n', " ").as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let answer: serde_json::Value = serde_json::from_str(&answer).context("the MIS")?;
    match answer.get("error").and_then(|error| error.as_str()) {
        Some(error) => Err(Error::new(error)),
        None => Ok(answer),
    }
}
