//! `miaf-agent svid`

use std::path::Path;
use std::process::ExitCode;

use super::{Output, no_answer, print, print_json, reader};
use crate::text::printable;

pub(super) fn run(config: &Path, output: &Output) -> ExitCode {
    match reader(config, output).svid() {
        Ok(svid) if output.json => print_json(&svid),
        Ok(svid) => print(&printable(&svid.certificate_chain_pem.concat())),
        Err(e) => no_answer(config, &e),
    }
}
