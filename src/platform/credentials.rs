//! Secrets outside of the configuration: a file, or a credential of systemd's (systemd.exec(5),
//! `LoadCredential=`).

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::{access, files};
use crate::hint::{Hint, Reason};

/// The source of a secret: `file:PATH`, or `credential:NAME`, a credential that systemd hands to
/// the service (systemd.exec(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Secret {
    /// `file:PATH`
    File(PathBuf),
    /// `credential:NAME`: the file of that name in `$CREDENTIALS_DIRECTORY`.
    Credential(String),
}

/// Limit of bytes of a secret. A password is shorter.
const MAX_SECRET: usize = 4096;
/// Limit of bytes of a private key, and certificates in its file.
const MAX_KEY: usize = 32 * 1024;

/// A secret that cannot be had. It says nothing of what is in it.
#[derive(Debug, thiserror::Error)]
#[error("the secret in {what} cannot be used: {why}")]
pub struct SecretError {
    /// The source of the secret.
    pub what: String,
    /// Why, and what to do.
    pub why: Reason,
}

impl Hint for SecretError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        self.why.hint()
    }
}

impl Secret {
    /// Reads it: at most 4 KiB, one line end dropped. The memory is wiped when it is dropped.
    ///
    /// # Errors
    /// [`SecretError`]: no such file, no such credential, not a regular file, too large, or nothing
    /// in it.
    pub fn read(&self) -> Result<Zeroizing<Vec<u8>>, SecretError> {
        self.read_with(credentials(), MAX_SECRET)
    }

    /// Reads a private key: as [`read`](Self::read), of at most 32 KiB.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_key(&self) -> Result<Zeroizing<Vec<u8>>, SecretError> {
        self.read_with(credentials(), MAX_KEY)
    }

    /// Its source, for messages.
    #[must_use]
    pub fn shown(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Credential(name) => format!("the credential \"{name}\""),
        }
    }

    /// Its file, where that is known.
    #[must_use]
    pub fn file(&self) -> Option<PathBuf> {
        match self {
            Self::File(path) => Some(path.clone()),
            Self::Credential(name) => credentials().map(|directory| directory.join(name)),
        }
    }

    /// A warning about the mode of its file, though it can be read.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let Self::File(path) = self else { return None }; // systemd sees to its own
        let mode = access::open_to_all(path)?;
        let (file, command) = (path.display(), access::shell_word(path));
        Some(format!(
            "the secret in {file} is open to every user of this device, by its mode {mode:04o}; correct it with: chmod o= \
             {command}"
        ))
    }

    fn read_with(
        &self,
        credentials: Option<PathBuf>,
        limit: usize,
    ) -> Result<Zeroizing<Vec<u8>>, SecretError> {
        let (what, path) = match self {
            Self::File(path) => (path.display().to_string(), path.clone()),
            Self::Credential(name) => {
                let what = format!("the credential \"{name}\"");
                let directory = credentials.ok_or_else(|| SecretError {
                    what: what.clone(),
                    why: Reason::from("systemd gave this process no credentials")
                        .with_hint_text(load_credential(name)),
                })?;
                (what, directory.join(name))
            }
        };
        read(&path, limit).map_err(|e| {
            let why = match self {
                Self::Credential(name) if e.kind() == io::ErrorKind::NotFound => {
                    Reason::from("systemd did not give it to this process")
                        .with_hint_text(load_credential(name))
                }
                _ => access::unreadable(&path, &e),
            };
            SecretError { what, why }
        })
    }
}

/// The directory with the credentials of the service (systemd.exec(5)).
pub(crate) fn credentials() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").filter(|directory| !directory.is_empty()).map(PathBuf::from)
}

/// Overwrites the part of this thread's stack that earlier calls have used: hash functions and C
/// libraries leave copies of a password there.
#[inline(never)]
pub(crate) fn wipe_stack() {
    let mut unused = [0_u8; 64 * 1024];
    std::hint::black_box(&mut unused);
}

/// What to do about a credential that the service was not given: one comes with its start.
fn load_credential(name: &str) -> String {
    format!("Add LoadCredential={name}:/path/to/it to a drop-in of the agent's unit, and restart the service")
}

fn read(path: &Path, limit: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut secret = files::read_secret(path, limit)?;
    for end in [b'\n', b'\r'] {
        if secret.last() == Some(&end) {
            secret.pop();
        }
    }
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hint::assert_apart;

    #[test]
    fn secret_loses_one_newline_at_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        for (written, read) in [
            ("", ""),
            ("\n", ""),
            ("pass", "pass"),
            ("pass\n", "pass"),
            ("pass\r\n", "pass"),
            ("pass\n\n", "pass\n"),
            (" p ", " p "),
        ] {
            std::fs::write(&path, written).unwrap();
            assert_eq!(Secret::File(path.clone()).read().unwrap().as_slice(), read.as_bytes());
        }
        let credential = Secret::Credential("secret".into());
        let read = credential.read_with(Some(directory.path().to_owned()), MAX_SECRET).unwrap();
        assert_eq!(read.as_slice(), b" p ");
    }

    #[test]
    fn secret_readable_by_all_is_warned_of() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        std::fs::write(&path, "x").unwrap();
        let set =
            |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        set(directory.path(), 0o755);
        set(&path, 0o644);
        let warning = Secret::File(path.clone()).warning().unwrap();
        assert!(warning.contains("mode 0644") && warning.contains("chmod o= "), "{warning}");
        set(&path, 0o640);
        assert_eq!(Secret::File(path).warning(), None);
        assert_eq!(Secret::Credential("secret".into()).warning(), None);
    }

    #[test]
    fn secret_error_names_the_cause_and_not_the_secret() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let error = |secret: &Secret| {
            let error = secret.read_with(None, MAX_SECRET).unwrap_err();
            assert_apart(&error);
            error.with_hint().to_string()
        };
        assert!(error(&Secret::File(path.clone())).contains("No such file"));
        assert!(error(&Secret::File(directory.path().into())).contains("not a regular file"));
        std::fs::write(&path, "x".repeat(4097)).unwrap();
        let too_large = error(&Secret::File(path.clone()));
        assert!(too_large.contains("4096 bytes") && !too_large.contains("xx"), "{too_large}");
        std::fs::write(&path, "x".repeat(4096)).unwrap();
        assert_eq!(Secret::File(path).read().unwrap().len(), 4096);
        let none = error(&Secret::Credential("proxy.auth".into()));
        assert!(none.contains("LoadCredential=proxy.auth:"), "{none}");
        let missing = Secret::Credential("proxy.auth".into());
        let missing = missing.read_with(Some(directory.path().into()), MAX_SECRET).unwrap_err();
        assert_eq!(missing.why.what, "systemd did not give it to this process");
        assert!(missing.hint().unwrap().ends_with("and restart the service"));
    }
}
