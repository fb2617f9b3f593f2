//! `miaf-agent bundle`

use std::path::Path;
use std::process::ExitCode;

use super::{Output, ask};
use crate::spiffe::{Bundle, TrustDomain};

pub(super) fn run(config: &Path, output: &Output) -> ExitCode {
    let body = match ask::get(config, output, "/v1/bundle") {
        Ok(body) => body,
        Err(e) => return super::status::fail(&e),
    };
    if output.json {
        print!("{}", String::from_utf8_lossy(&body));
        return ExitCode::SUCCESS;
    }
    // The document is a bundle without a name; any name reads it.
    let bundle = TrustDomain::parse("any").map_err(|e| e.to_string());
    match bundle.and_then(|any| Bundle::from_served(&body, &any).map_err(|e| e.to_string())) {
        Ok(bundle) => {
            print!("{}", bundle.to_pem());
            ExitCode::SUCCESS
        }
        Err(e) => super::status::fail(&e),
    }
}
