//! `miaf-agent svid` and `miaf-agent bundle`.

use std::path::Path;
use std::process::ExitCode;

use super::{Output, Selection, fail_on_client, print, print_json, reader};
use miaf_spiffe::svid::certificate_pem;
use miaf_spiffe::text::printable;

pub(super) fn svid(config: &Path, output: &Output, selection: &Selection) -> ExitCode {
    match selection.of(reader(config, output)).svid() {
        Ok(svid) if output.json => print_json(&svid),
        Ok(svid) => print(&printable(&svid.certificate_chain_pem.concat())),
        Err(e) => fail_on_client(config, &e),
    }
}

pub(super) fn bundle(config: &Path, output: &Output) -> ExitCode {
    match reader(config, output).bundle() {
        Ok(bundle) if output.json => print_json(&bundle.document),
        Ok(bundle) => print(&bundle.anchors.iter().map(certificate_pem).collect::<String>()),
        Err(e) => fail_on_client(config, &e),
    }
}
