//! `miaf-agent svid`

use std::path::Path;
use std::process::ExitCode;

use super::{Output, ask};
use crate::deliver::status::SvidDocument;

pub(super) fn run(config: &Path, output: &Output) -> ExitCode {
    let body = match ask::get(config, output, "/v1/svid") {
        Ok(body) => body,
        Err(e) => return super::status::fail(&e),
    };
    if output.json {
        print!("{}", String::from_utf8_lossy(&body));
        return ExitCode::SUCCESS;
    }
    match serde_json::from_slice::<SvidDocument>(&body) {
        Ok(svid) => {
            print!("{}", svid.certificate_chain_pem.concat());
            ExitCode::SUCCESS
        }
        Err(e) => super::status::fail(&e),
    }
}
