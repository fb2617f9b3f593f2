//! `miaf-agent csr` and `miaf-agent install`: the two halves of an enrollment by hand (N9).

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use super::render::error;
use super::{
    Output, Selection, admin_client, fail_on_client, fail_with_hint, print, print_bytes, print_json, shown,
};
use crate::hint::Reason;
use crate::platform::{access, files};
use miaf_client::Client;
use miaf_client::api::{ErrorStatus, IdentityStatus, MAX_CHAIN_PEM, ProblemCode, Status};
use miaf_spiffe::svid::{Chain, SvidError, X509Svid};
use miaf_spiffe::text::{self, Excerpt};
use miaf_spiffe::time::Timestamp;
use miaf_spiffe::{SpiffeId, pem};

/// Limit on the bytes of the file with a chain.
const MAX_CHAIN: u64 = MAX_CHAIN_PEM as u64;
/// Limit of characters of a path in a message.
const MAX_PATH: usize = 300;
/// Mode of a file with a request: nothing in it is secret.
const CSR_MODE: u32 = 0o644;
/// How each SPIFFE ID begins.
const NAME: &[u8] = b"spiffe://";
/// What `csr --out` says of a request without a SPIFFE ID.
const NOTE_WITHOUT_NAME: &str = "The request names no SPIFFE ID: its signer has to put one into the certificate. For one that \
     takes it from the request, name it with --spiffe-id, or as spiffe_id under the [[identity]].\n";
/// How long `install` waits for what becomes of a chain that the agent has accepted.
const OUTCOME_LIMIT: Duration = Duration::from_secs(30);
/// Interval of checks meanwhile.
const OUTCOME_INTERVAL: Duration = Duration::from_millis(200);

/// The form in which a request is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Pem,
    Der,
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
    let Some(der) = request_in(&csr) else {
        let what = "the response of the agent is not one certificate signing request in PEM";
        let hint = "See whether --socket names the socket of an agent of this version";
        return fail_with_hint(&Reason::from(what).with_hint_text(hint));
    };
    // Where the options and the configuration name no SPIFFE ID, the request has none.
    let without_name = !der.windows(NAME.len()).any(|bytes| bytes == NAME);
    let bytes = match form {
        Form::Pem => text::printable(&csr).into_owned().into_bytes(),
        Form::Der => der,
    };
    if let Some(path) = out
        && let Err(e) = write_file(path, &bytes)
    {
        return fail_with_hint(&unwritable(path, &e));
    }
    match out {
        _ if output.json => print_json(&serde_json::json!({ "csr": csr })),
        Some(path) => {
            let name = selection.identity.as_ref().map(|name| format!(" --identity {name}"));
            let note = if without_name { NOTE_WITHOUT_NAME } else { "" };
            print(&format!(
                "The request is in {}. Have it signed, and install the chain that is issued for it:\n  \
                 miaf-agent install{} chain.pem\n{note}",
                shown(path.display()),
                name.unwrap_or_default()
            ))
        }
        None => print_bytes(&bytes),
    }
}

/// The one certification request in a PEM text.
fn request_in(csr: &str) -> Option<Vec<u8>> {
    match pem::read(csr.as_bytes()).ok()?.blocks.as_slice() {
        [request] if &*request.label == "CERTIFICATE REQUEST" => Some(request.der.to_vec()),
        _ => None,
    }
}

/// Writes a file, and replaces one that is there, as `openssl req -out` does: it is never half
/// written. What is neither (a terminal, a pipe, a symbolic link such as /dev/stdout) is written to.
fn write_file(path: &Path, content: &[u8]) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(there) if !there.is_file() => {
            return OpenOptions::new().write(true).truncate(true).open(path)?.write_all(content);
        }
        Ok(_) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let path = std::path::absolute(path)?;
    let name = path.file_name().ok_or_else(|| io::Error::from(ErrorKind::IsADirectory))?;
    // A name that no file of the caller has.
    let new = path.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    files::set_umask();
    let written = files::write_new(&new, content, CSR_MODE, None).and_then(|()| fs::rename(&new, &path));
    if written.is_err() {
        let _ = files::remove_if_there(&new);
    }
    written
}

fn unwritable(path: &Path, e: &io::Error) -> Reason {
    let what = format!("{} cannot be written: {}", path_shown(path), Excerpt::of(e, MAX_PATH));
    Reason::from(what).with_hint_text("Name a file in a directory that can be written to with --out")
}

pub(super) fn install(config: &Path, output: &Output, selection: &Selection, file: &Path) -> ExitCode {
    let (text, svid) = match read(file) {
        Ok(read) => read,
        Err(why) => return fail_with_hint(&why),
    };
    let agent = selection.of(admin_client(config, output));
    // What is wrong with a chain before this one is not what becomes of it.
    let before = match agent.status() {
        Ok(status) => status.identity(selection.identity.as_ref()).and_then(|is| is.last_error.clone()),
        Err(e) => return fail_on_client(config, &e.of_admin_command()),
    };
    let accepted = match agent.install(&text) {
        Ok(accepted) => accepted,
        Err(e) => return fail_on_client(config, &e),
    };
    let outcome = match wait_for_outcome(&agent, selection, &svid, before.as_ref()) {
        Outcome::Refused(refused) => return fail_with_hint(&of_error(&refused)),
        outcome => outcome,
    };
    if output.json {
        let (accepted, detail) = (accepted.accepted, accepted.detail);
        return print_json(&Installed { accepted, detail, outcome: outcome.as_str() });
    }
    let then = match outcome {
        Outcome::Adopted => "It is in use now.",
        _ => "It is not in use yet. To see the result: miaf-agent status",
    };
    print(&format!("{}\n{then}\n", shown(accepted.detail)))
}

/// What `install --json` prints.
#[derive(Serialize)]
struct Installed {
    accepted: bool,
    detail: String,
    outcome: &'static str,
}

/// What became of a chain that the agent has accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Adopted,
    /// It is stored, and adopted later.
    Kept,
    Refused(ErrorStatus),
}

impl Outcome {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Adopted => "adopted",
            Self::Kept => "kept",
            Self::Refused(_) => "refused",
        }
    }
}

/// Waits for the outcome, as far as it can be expected within [`OUTCOME_LIMIT`].
fn wait_for_outcome(
    agent: &Client,
    selection: &Selection,
    svid: &X509Svid,
    before: Option<&ErrorStatus>,
) -> Outcome {
    let until = Instant::now() + OUTCOME_LIMIT;
    let is_early = Timestamp::from(SystemTime::now()).until(svid.not_before()) > OUTCOME_LIMIT;
    loop {
        let status = agent.status().ok(); // the agent may be about to restart
        let identity = status.as_ref().and_then(|status| of_selection(status, selection));
        let outcome = identity.and_then(|identity| outcome(identity, svid));
        let is_over = Instant::now() >= until;
        match outcome {
            // An error from before, or one that may pass.
            Some(Outcome::Refused(error))
                if !is_over && (Some(&error) == before || error.retry_at.is_some()) => {}
            Some(outcome) => return outcome,
            None if is_early || is_over => return Outcome::Kept,
            None => {}
        }
        sleep(OUTCOME_INTERVAL);
    }
}

fn of_selection<'a>(status: &'a Status, selection: &Selection) -> Option<&'a IdentityStatus> {
    status.identity(selection.identity.as_ref())
}

/// What a status says of a chain. `None`: nothing yet.
fn outcome(identity: &IdentityStatus, svid: &X509Svid) -> Option<Outcome> {
    let current = identity.svid.as_ref();
    if current.is_some_and(|is| is.serial == svid.serial() && is.not_before == svid.not_before()) {
        return Some(Outcome::Adopted);
    }
    let error = identity.last_error.as_ref()?;
    let is_of_the_chain = error.code.known().is_some_and(|code| {
        use ProblemCode as P;
        matches!(code, P::SvidRefused | P::IssuerExpired | P::SvidNotTrusted | P::Key | P::State)
    });
    is_of_the_chain.then(|| Outcome::Refused(error.clone()))
}

fn of_error(refused: &ErrorStatus) -> Reason {
    let what = format!("the chain is not adopted. {}", error(refused));
    Reason { what, hint: refused.hint.clone() }
}

/// Reads the chain that is to be installed: its text, and the SVID in it, not validated yet.
fn read(file: &Path) -> Result<(String, X509Svid), Reason> {
    let content = content(file)?;
    let refused = |what: &str, why: &SvidError| {
        let what = format!("{} {what}: {why}", path_shown(file));
        Reason::from(what).with_hint_text(instead(file, &content))
    };
    let chain =
        Chain::from_pem_text(&content).map_err(|e| refused("is not a certificate chain in PEM", &e))?;
    let svid = X509Svid::from_stored(chain.clone())
        .map_err(|e| refused("does not begin with the certificate of an identity", &e))?;
    // Only certificates are sent, in ASCII: whatever else the file has, and in whatever encoding.
    let text = chain.to_pems().concat();
    if text.len() > MAX_CHAIN_PEM {
        let what = format!("{} has more than {} KiB of certificates", path_shown(file), MAX_CHAIN_PEM / 1024);
        let hint = "Install nothing but the certificate of the identity and its intermediates";
        return Err(Reason::from(what).with_hint_text(hint));
    }
    Ok((text, svid))
}

fn content(file: &Path) -> Result<Vec<u8>, Reason> {
    let content = if file == Path::new("-") {
        let mut content = Vec::new();
        let read = io::stdin().take(MAX_CHAIN + 1).read_to_end(&mut content);
        read.and_then(|_| match content.len() as u64 > MAX_CHAIN {
            true => Err(files::too_large(MAX_CHAIN)),
            false => Ok(content),
        })
    } else {
        files::read_at_most(file, MAX_CHAIN)
    };
    content.map_err(|e| {
        let why = access::unreadable(file, &e);
        let hint = match e.kind() {
            ErrorKind::PermissionDenied => why.hint,
            _ => Some("Name the file with the chain that was issued for the request, or - for stdin".into()),
        };
        Reason { what: format!("{} cannot be read: {}", path_shown(file), why.what), hint }
    })
}

/// What to do with a file that is something else.
fn instead(file: &Path, content: &[u8]) -> String {
    let word = access::shell_word(file);
    let blocks = pem::read(content).map(|read| read.blocks).unwrap_or_default();
    let has = |label: &str| blocks.iter().any(|block| block.label.contains(label));
    if has("PRIVATE KEY") {
        "Remove the private key from the file: the identity has its own, and takes no other".into()
    } else if has("CERTIFICATE REQUEST") {
        "Have this request signed, and install the chain that is issued for it".into()
    } else if has("PKCS7") {
        format!("Convert it: openssl pkcs7 -print_certs -in {word} -out chain.pem")
    } else if blocks.is_empty() && pem::instead_of_blocks(content, &[]) == pem::Content::Der {
        format!("Convert it from DER: openssl x509 -inform der -in {word} -out chain.pem")
    } else {
        "Install the certificates that were issued for the request, leaf first, in PEM".into()
    }
}

fn path_shown(path: &Path) -> Excerpt {
    match path == Path::new("-") {
        true => Excerpt::of("stdin", MAX_PATH),
        false => Excerpt::of(path.display(), MAX_PATH),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::render::tests::{example, time};
    use crate::hint::Hint as _;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn certificate() -> String {
        let pair = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        let uri = "spiffe://factory.example/margo/wfm/w/client/c".try_into().unwrap();
        params.subject_alt_names.push(rcgen::SanType::URI(uri));
        params.self_signed(&pair).unwrap().pem()
    }

    #[test]
    fn chain_file_is_refused_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("it's a chain");
        let refused = |content: &[u8]| {
            fs::write(&file, content).unwrap();
            let why = read(&file).unwrap_err();
            crate::hint::assert_apart(&why);
            assert!(why.what.contains("it's a chain"), "{why}");
            why.hint().unwrap().into_owned()
        };
        let pem = certificate();
        let der = pem::read(pem.as_bytes()).unwrap().blocks[0].der.to_vec();
        let hint = refused(&der);
        assert!(hint.contains("openssl x509 -inform der -in "), "{hint}");
        let block = |label: &str| pem.replace("CERTIFICATE", label);
        assert!(refused(block("PRIVATE KEY").as_bytes()).contains("Remove the private key"));
        let both = format!("{pem}{}", block("EC PRIVATE KEY"));
        assert!(refused(both.as_bytes()).contains("Remove the private key"));
        assert!(refused(block("CERTIFICATE REQUEST").as_bytes()).contains("request signed"));
        assert!(refused(block("PKCS7").as_bytes()).contains("openssl pkcs7"));
        for nothing in [&b""[..], b"\n", b"nonsense", b"-----BEGIN CERTIFICATE-----\n", &[0xff; 300]] {
            assert!(refused(nothing).contains("leaf first"), "{nothing:?}");
        }
        fs::write(&file, vec![b'a'; 64 * 1024 + 1]).unwrap();
        let why = read(&file).unwrap_err();
        assert!(why.what.ends_with("it is larger than 64 KiB"), "{why}");
        let why = read(&dir.path().join("missing")).unwrap_err();
        assert!(why.hint().unwrap().contains("Name the file"), "{why:?}");
        assert!(read(dir.path()).is_err());
    }

    #[test]
    fn chain_is_sent_as_certificates_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("chain.pem");
        let pem = certificate();
        // As `openssl ca` writes it, and in the UTF-16 of another system.
        let wordy = format!("Certificate:\n  Data: \u{e9}\n{}", pem.replace('\n', "\r\n"));
        let utf16: Vec<u8> = pem.encode_utf16().flat_map(u16::to_le_bytes).collect();
        for content in [pem.as_bytes(), wordy.as_bytes(), &utf16] {
            fs::write(&file, content).unwrap();
            assert_eq!(read(&file).unwrap().0, pem.replace("\r\n", "\n"));
        }
    }

    #[test]
    fn request_file_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("request.pem");
        for content in ["first, which is longer", "second"] {
            write_file(&file, content.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), content);
        }
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
        // A link is written through, as /dev/stdout is one.
        let link = dir.path().join("link");
        symlink(&file, &link).unwrap();
        write_file(&link, b"third").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "third");
        assert!(write_file(dir.path(), b"x").is_err());
        assert!(write_file(&dir.path().join("missing/request.pem"), b"x").is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left behind");
    }

    #[test]
    fn request_in_a_response_is_one_block() {
        let request = certificate().replace("CERTIFICATE", "CERTIFICATE REQUEST");
        assert!(request_in(&request).is_some());
        for other in [certificate(), format!("{request}{request}"), String::new(), "x".into()] {
            assert_eq!(request_in(&other), None, "{other}");
        }
    }

    #[test]
    fn outcome_is_the_serial_or_an_error_of_the_chain() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("chain.pem"), certificate()).unwrap();
        let (_, svid) = read(&dir.path().join("chain.pem")).unwrap();
        let (mut status, _) = example();
        let identity = &mut status.identities[0];
        // Of another SVID, and an error of another matter.
        assert_eq!(outcome(identity, &svid), None);
        let error = identity.last_error.as_mut().unwrap();
        (error.code, error.retry_at) = (ProblemCode::OperatorNeeded.into(), None);
        assert_eq!(outcome(identity, &svid), None);
        identity.last_error.as_mut().unwrap().code = ProblemCode::SvidRefused.into();
        let refused = outcome(identity, &svid);
        assert_eq!(refused, identity.last_error.clone().map(Outcome::Refused));
        let current = identity.svid.as_mut().unwrap();
        current.serial = svid.serial().into();
        assert_eq!(
            outcome(identity, &svid),
            refused,
            "a serial number is the issuer's, and one may be used twice"
        );
        identity.svid.as_mut().unwrap().not_before = svid.not_before();
        assert_eq!(outcome(identity, &svid), Some(Outcome::Adopted));
        assert!(time("2026-01-01T00:00:00Z") != svid.not_before());
    }
}
