//! Faults made by strace(1): at a system call on a certain path a running process is failed, killed
//! or stopped. Needs root: the agent lets no other process of its user read its memory.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::agent::{PATIENCE, pause};
use super::log::Log;

/// Time in which strace lets its processes go.
const LEAVES_WITHIN: Duration = Duration::from_secs(20);

/// The calls by which a file system is changed, and those that open something in it.
const CALLS: &str = "?open,?creat,openat,write,pwrite64,writev,fsync,fdatasync,ftruncate,fallocate,?rename,renameat,\
                     renameat2,?mkdir,mkdirat,?symlink,symlinkat,?link,linkat,?unlink,unlinkat,?rmdir,fchown,?chown,\
                     fchownat,?chmod,fchmod,fchmodat";

/// One call, as strace writes it down.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Call {
    /// `openat`, say.
    pub(crate) name: String,
    /// What it works on, by which strace finds it: of what is renamed the old name, of a link the
    /// link, of a file that is removed through its directory the directory.
    pub(crate) path: PathBuf,
    /// It opens what must be there, to read it.
    pub(crate) reads: bool,
}

/// What happens at a call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum What {
    /// It fails with this error, by name, the first time in each thread.
    FailsOnce(&'static str),
    /// It fails with this error as long as strace is there.
    Fails(&'static str),
    /// It kills the process, before it is carried out.
    Kills,
    /// It stops the process, after it was carried out.
    Stops,
}

/// A strace that is attached to a process. The process goes on without it when it is gone.
pub(crate) struct Strace {
    process: Child,
    log: Log,
}

impl Strace {
    /// Writes down every call of `pid` and all its threads.
    pub(crate) fn watch(pid: u32, log: &Path) -> Self {
        Self::attach(pid, log, &[format!("--trace={CALLS}")])
    }

    /// Does something at the first such call of `pid` from now on.
    pub(crate) fn inject(pid: u32, log: &Path, at: &Call, what: What) -> Self {
        let how = match what {
            What::FailsOnce(error) => format!("error={error}:when=1"),
            What::Fails(error) => format!("error={error}:when=1+"),
            What::Kills => "signal=KILL:when=1".to_owned(),
            What::Stops => "signal=STOP:when=1".to_owned(),
        };
        let path = at.path.to_str().expect("a path in UTF-8");
        let only = [format!("--trace-path={path}"), format!("--trace={}", at.name)];
        Self::attach(pid, log, &[&only[..], &[format!("--inject={}:{how}", at.name)]].concat())
    }

    /// # Panics
    /// If `strace` is not installed or may not be used: a test without faults would prove nothing.
    fn attach(pid: u32, log: &Path, arguments: &[String]) -> Self {
        let _ = fs::remove_file(log);
        let mut strace = Command::new("strace");
        strace.args(["--follow-forks", "--decode-fds=path", "--string-limit=0"]).args(arguments);
        strace.arg("-o").arg(log).args(["-p", &pid.to_string()]);
        let started = strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut process = started.expect("strace is needed for this test: apt install strace");
        let mut said = BufReader::new(process.stderr.take().expect("its stderr"));
        let mut all = String::new();
        while !all.contains(" attached") {
            let read = said.read_line(&mut all).expect("what strace says");
            assert!(read > 0, "strace cannot be attached, for which it must be run as root: {all}");
        }
        // It says more, of threads that come and go: nothing may make it wait.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Self { process, log: Log::new("strace", log.to_owned()) }
    }

    /// What it has written down.
    pub(crate) fn log(&self) -> String {
        self.log.text()
    }

    /// Whether what was to happen has happened.
    pub(crate) fn has_hit(&self, what: What) -> bool {
        self.log().contains(match what {
            What::FailsOnce(_) | What::Fails(_) => "(INJECTED)",
            What::Kills => "+++ killed by SIGKILL +++",
            What::Stops => "--- SIGSTOP {",
        })
    }

    /// Lets go of the process, and returns what was written down.
    pub(crate) fn detach(mut self) -> String {
        self.end();
        self.log()
    }

    fn end(&mut self) {
        let pid = self.process.id();
        // On SIGTERM it lets its processes go unhurt; killed, it would leave them as they are.
        let _ = Command::new("sh").args(["-c", &format!("kill -s TERM {pid}")]).status();
        // Where a process of several threads ends meanwhile, it may wait for one of them for ever.
        let since = Instant::now();
        while matches!(self.process.try_wait(), Ok(None)) && since.elapsed() < LEAVES_WITHIN {
            pause();
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        if let Ok(None) = self.process.try_wait() {
            self.end();
        }
    }
}

/// The calls in the output of strace, in the sequence in which they began.
pub(crate) fn calls(log: &str) -> Vec<Call> {
    log.lines().filter_map(call).collect()
}

fn call(line: &str) -> Option<Call> {
    let (_thread, call) = line.split_once(' ')?;
    let (name, arguments) = call.trim_start().split_once('(')?;
    if name.contains(['<', '-', '+', ' ']) {
        return None; // the end of a call, a signal
    }
    let quoted: Vec<&str> = arguments.split('"').skip(1).step_by(2).collect();
    let opened = || Some(arguments.split_once('<')?.1.split_once('>')?.0);
    let path = match name {
        "symlink" | "symlinkat" => *quoted.get(1)?,
        "rename" | "renameat" | "renameat2" | "link" | "linkat" | "open" | "creat" | "openat" | "mkdir"
        | "mkdirat" | "unlink" | "rmdir" | "chown" | "fchownat" | "chmod" | "fchmodat" => quoted.first()?,
        "unlinkat" if quoted.first()?.starts_with('/') => quoted.first()?,
        _ => opened()?,
    };
    let reads = name.starts_with("open") && arguments.contains("O_RDONLY");
    Some(Call { name: name.to_owned(), path: path.into(), reads })
}

/// Waits until every thread of a process is stopped by a signal.
pub(crate) fn wait_until_stopped(pid: u32) {
    let is_stopped = |thread: fs::DirEntry| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the process");
        if threads.filter_map(Result::ok).all(is_stopped) {
            return;
        }
        assert!(Instant::now() < deadline, "process {pid} was to be stopped");
        pause();
    }
}
