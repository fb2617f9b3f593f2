//! `miaf-agent enroll`: hands an enrollment token to the agent (X31, X43).

use std::io::{self, IsTerminal as _, Read as _};
use std::path::Path;
use std::process::ExitCode;

use zeroize::Zeroizing;

use super::{
    Output, Selection, admin_client, complain, fail_on_client, fail_with_hint, print, print_json, shown,
};
use crate::hint::Reason;
use crate::platform::credentials::Secret;
use crate::platform::{access, files};
use miaf_client::api::{IdentityName, Status};
use miaf_client::{Client, ClientError};
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
    let agent = match selected(admin_client(config, output), selection) {
        Ok(agent) => agent,
        Err(Unselected::Client(e)) => return fail_on_client(config, &e.of_admin_command()),
        Err(Unselected::Several(why)) => return fail_with_hint(&why),
    };
    warn_of_mode(file);
    match agent.enroll(&token) {
        Ok(accepted) if output.json => print_json(&accepted),
        Ok(accepted) => print(&format!("{}\n", shown(accepted.detail))),
        Err(e) => fail_on_client(config, &e),
    }
}

/// Warns of a file that every user of the device can read: it is used all the same.
fn warn_of_mode(file: &Path) {
    if file == Path::new("-") {
        return;
    }
    if let Some(warning) = Secret::File(file.to_owned()).warning() {
        complain(&warning);
    }
}

/// Why there is no identity to hand a token to.
enum Unselected {
    Client(ClientError),
    Several(Reason),
}

/// The client for the selected identity; without a selection, for the one that takes tokens. Where none
/// does, the agent says so of the default identity.
fn selected(agent: Client, selection: &Selection) -> Result<Client, Unselected> {
    if selection.identity.is_some() {
        return Ok(selection.of(agent));
    }
    let status = agent.status().map_err(Unselected::Client)?;
    match choose(&status) {
        Ok(Some(name)) => Ok(agent.with_identity(name)),
        Ok(None) => Ok(agent),
        Err(why) => Err(Unselected::Several(why)),
    }
}

/// The one identity that takes enrollment tokens: a token is for one SPIFFE ID, and none of them is
/// more likely than another.
fn choose(status: &Status) -> Result<Option<IdentityName>, Reason> {
    let names: Vec<_> = status
        .identities
        .iter()
        .filter(|identity| identity.is_by_token())
        .map(|is| is.name.clone())
        .collect();
    match names.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        [first, ..] => {
            let shown: Vec<_> = names.iter().map(IdentityName::as_str).collect();
            let what = format!("several identities enroll by a token: {}", shown.join(", "));
            let hint = format!("Name the one that this token is for, as in --identity {first}");
            Err(Reason::from(what).with_hint_text(hint))
        }
    }
}

/// Reads the token. What is wrong with its content the agent says, and it is not in any message.
fn read(file: &Path) -> Result<Zeroizing<String>, Reason> {
    let place = if file == Path::new("-") { "stdin".to_owned() } else { file.display().to_string() };
    let place = Excerpt::of(place, MAX_PATH);
    if file == Path::new("-") && io::stdin().is_terminal() {
        let hint =
            "Put the token into a file that only root can read and name it, or pipe it into this command";
        return Err(Reason::from("stdin is a terminal, which would show the token").with_hint_text(hint));
    }
    let content = content(file).map_err(|e| {
        let why = access::unreadable(file, &e);
        // No configuration names it.
        let hint = why.hint.filter(|_| e.kind() != io::ErrorKind::NotFound);
        let hint = hint.unwrap_or_else(|| "Name the file with the token, or - for stdin".to_owned());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::render::tests::example;
    use miaf_client::api::{EstAuthorization, EstStatus};

    #[test]
    fn missing_token_file_is_not_blamed_on_the_configuration() {
        let why = read(Path::new("/nonexistent/line-7.token")).unwrap_err();
        assert!(why.what.starts_with("/nonexistent/line-7.token cannot be read: "), "{}", why.what);
        assert_eq!(why.hint.as_deref(), Some("Name the file with the token, or - for stdin"));
    }

    #[test]
    fn token_goes_to_the_one_identity_that_takes_tokens() {
        let (status, _) = example();
        let device = status.identities.first().unwrap().clone();
        let over_est = |name: &str, authorization: EstAuthorization| {
            let mut identity = device.clone();
            identity.name = IdentityName::parse(name).unwrap();
            identity.est = Some(EstStatus {
                url: None,
                url_source: None,
                authorization: authorization.into(),
                token_source: None,
                has_token: false,
                token_needed: false,
                token_needed_after: None,
                certificate: None,
                tls12_allowed: false,
                standardized: true,
            });
            identity
        };
        let chosen = |others: &[(&str, EstAuthorization)]| {
            let mut status = status.clone();
            status.identities.extend(others.iter().map(|(name, by)| over_est(name, *by)));
            choose(&status)
        };
        let (token, certificate) = (EstAuthorization::Token, EstAuthorization::Certificate);
        assert_eq!(chosen(&[]), Ok(None));
        assert_eq!(chosen(&[("a", certificate)]), Ok(None));
        assert_eq!(chosen(&[("a", certificate), ("b", token)]), Ok(Some(IdentityName::parse("b").unwrap())));
        let several = chosen(&[("a", token), ("b", token)]).unwrap_err();
        assert_eq!(several.what, "several identities enroll by a token: a, b");
        assert!(several.hint.unwrap().contains("--identity a"));
    }
}
