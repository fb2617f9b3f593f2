//! The replayed programs as processes.

use std::ffi::OsStr;
use std::process::Command;

use crate::support::program::Program;
use crate::support::python;

/// The directory of the programs.
pub(crate) const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sandbox");

/// Runs a program to its end, which is a success.
pub(crate) fn run(name: &str, arguments: &[&dyn AsRef<OsStr>]) {
    let output = command(name, arguments).output().expect("Python");
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) fn start(name: &str, arguments: &[&dyn AsRef<OsStr>]) -> Program {
    Program::start(&mut command(name, arguments))
}

/// Starts a server, and returns it with its address, `https://HOST:PORT`.
pub(crate) fn serve(name: &str, arguments: &[&dyn AsRef<OsStr>]) -> (Program, String) {
    Program::serve(&mut command(name, arguments))
}

fn command(name: &str, arguments: &[&dyn AsRef<OsStr>]) -> Command {
    let mut command = python::script(&format!("{DIRECTORY}/{name}"));
    command.args(arguments.iter().map(|one| one.as_ref()));
    command
}
