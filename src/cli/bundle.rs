//! `miaf-agent bundle`

use std::path::Path;
use std::process::ExitCode;

use super::{Output, no_answer, print, print_json, reader};
use crate::spiffe::svid::certificate_pem;

pub(super) fn run(config: &Path, output: &Output) -> ExitCode {
    match reader(config, output).bundle() {
        Ok(bundle) if output.json => print_json(&bundle.document),
        Ok(bundle) => print(&bundle.anchors.iter().map(certificate_pem).collect::<String>()),
        Err(e) => no_answer(config, &e),
    }
}
