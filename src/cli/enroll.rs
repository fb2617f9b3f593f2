//! `miaf-agent enroll`: hands an enrollment token to the agent (X31, X43).

use std::io::{self, Read as _};
use std::path::Path;
use std::process::ExitCode;

use zeroize::Zeroizing;

use super::{Output, Selection, admin_client, fail_on_client, fail_with_hint, print, print_json, shown};
use crate::hint::Reason;
use crate::platform::{access, files};
use miaf_spiffe::text::Excerpt;

/// Limit on the bytes of a file with a token, with a line break at its end.
const MAX_TOKEN_FILE: u64 = 1024 + 2;
/// Limit of characters of a path in a message.
const MAX_PATH: usize = 300;

pub(super) fn run(config: &Path, output: &Output, selection: &Selection, file: &Path) -> ExitCode {
    let token = match read(file) {
        Ok(token) => token,
        Err(why) => return fail_with_hint(&why),
    };
    match selection.of(admin_client(config, output)).enroll(&token) {
        Ok(accepted) if output.json => print_json(&accepted),
        Ok(accepted) => print(&format!("{}\n", shown(accepted.detail))),
        Err(e) => fail_on_client(config, &e),
    }
}

/// Reads the token. What is wrong with its content the agent says, and it is not in any message.
fn read(file: &Path) -> Result<Zeroizing<String>, Reason> {
    let place = if file == Path::new("-") { "stdin".to_owned() } else { file.display().to_string() };
    let place = Excerpt::of(place, MAX_PATH);
    let content = content(file).map_err(|e| {
        let why = access::unreadable(file, &e);
        let hint = why.hint.unwrap_or_else(|| "Name the file with the token, or - for stdin".to_owned());
        Reason::from(format!("{place} cannot be read: {}", why.what)).with_hint_text(hint)
    })?;
    let text = str::from_utf8(&content).map(|text| Zeroizing::new(text.to_owned()));
    text.map_err(|_| {
        let hint =
            "Name the file with the token as the operator of the MIS gave it: one line, username:secret";
        Reason::from(format!("{place} is not UTF-8 text")).with_hint_text(hint)
    })
}

fn content(file: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    if file != Path::new("-") {
        return files::read_at_most(file, MAX_TOKEN_FILE).map(Zeroizing::new);
    }
    let mut content = Zeroizing::new(Vec::with_capacity(MAX_TOKEN_FILE as usize + 1));
    io::stdin().take(MAX_TOKEN_FILE + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_TOKEN_FILE { Err(files::too_large(MAX_TOKEN_FILE)) } else { Ok(content) }
}
