//! `miaf-agent csr` and `miaf-agent install`: the two halves of an enrollment by hand (N9).

use std::borrow::Cow;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{Output, Selection, admin, admin_client, fail_on_client, fail_with_hint, print, print_json};
use crate::hint::Hint;
use crate::platform::files;
use miaf_spiffe::{SpiffeId, pem};

/// Limit on the bytes of a chain, as the agent has it.
const MAX_CHAIN: u64 = 64 * 1024;

/// The form in which a request is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Pem,
    Der,
}

/// A file that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be {verb}: {source}", path.display())]
struct FileError {
    path: PathBuf,
    verb: &'static str,
    source: io::Error,
}

impl Hint for FileError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        None
    }
}

pub(super) fn csr(
    config: &Path,
    output: &Output,
    selection: &Selection,
    spiffe_id: Option<&SpiffeId>,
    form: Form,
    out: Option<&Path>,
) -> ExitCode {
    let csr = match selection.of(admin_client(config, output)).csr(spiffe_id) {
        Ok(csr) => csr,
        Err(e) => return fail_on_client(config, &e),
    };
    let bytes = match form {
        Form::Pem => csr.clone().into_bytes(),
        Form::Der => match pem::read(csr.as_bytes()).ok().and_then(|read| read.blocks.into_iter().next()) {
            Some(block) => block.der.to_vec(),
            None => return ExitCode::FAILURE,
        },
    };
    match out {
        Some(path) => match fs::write(path, &bytes) {
            Ok(()) => ExitCode::SUCCESS,
            Err(source) => fail_with_hint(&FileError { path: path.to_owned(), verb: "written", source }),
        },
        None if output.json => print_json(&serde_json::json!({ "csr": csr })),
        None if form == Form::Pem => print(&csr),
        None => match io::stdout().write_all(&bytes) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
    }
}

pub(super) fn install(config: &Path, output: &Output, selection: &Selection, chain: &Path) -> ExitCode {
    match read(chain) {
        Ok(text) => admin::report(config, selection.of(admin_client(config, output)).install(&text), output),
        Err(source) => fail_with_hint(&FileError { path: chain.to_owned(), verb: "read", source }),
    }
}

fn read(chain: &Path) -> io::Result<String> {
    let bytes = if chain == Path::new("-") {
        let mut bytes = Vec::new();
        io::stdin().take(MAX_CHAIN).read_to_end(&mut bytes)?;
        bytes
    } else {
        files::read_at_most(chain, MAX_CHAIN)?
    };
    String::from_utf8(bytes).map_err(|_| io::Error::other("it is not PEM"))
}
