//! Secrets that lie beside the configuration and not in it: a file, or a credential of systemd's (systemd.exec(5),
//! `LoadCredential=`).

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::config::Secret;

/// A password is shorter.
const MAX_SECRET: usize = 4096;

/// A secret that cannot be had. It says nothing of what is in it.
#[derive(Debug, thiserror::Error)]
#[error("the secret in {what} cannot be used: {why}")]
pub struct SecretError {
    /// Where it was looked for.
    pub what: String,
    /// What is wrong, and where it is not plain, what to do.
    pub why: String,
}

impl Secret {
    /// Reads it: at most 4 KiB, one trailing newline dropped. The memory is wiped when it is let go.
    ///
    /// # Errors
    /// [`SecretError`]: no such file, no such credential, not a regular file, too large, or nothing in it.
    pub fn read(&self) -> Result<Zeroizing<Vec<u8>>, SecretError> {
        self.read_with(std::env::var_os("CREDENTIALS_DIRECTORY"))
    }

    fn read_with(&self, credentials: Option<OsString>) -> Result<Zeroizing<Vec<u8>>, SecretError> {
        let (what, path) = match self {
            Self::File(path) => (path.display().to_string(), path.clone()),
            Self::Credential(name) => {
                let what = format!("the credential \"{name}\"");
                let folder = credentials.filter(|folder| !folder.is_empty()).ok_or_else(|| SecretError {
                    what: what.clone(),
                    why: format!(
                        "systemd gave this process no credentials. Add LoadCredential={name}:/path/to/it to the unit"
                    ),
                })?;
                (what, PathBuf::from(folder).join(name))
            }
        };
        read(&path).map_err(|why| SecretError { what, why: why.to_string() })
    }
}

fn read(path: &std::path::Path) -> io::Result<Zeroizing<Vec<u8>>> {
    // Only a regular file: to open a pipe would wait for its other end.
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    // One buffer that never grows, so that no copy is left behind.
    let mut secret = Zeroizing::new(Vec::with_capacity(MAX_SECRET + 1));
    let mut buffer = Zeroizing::new([0; MAX_SECRET + 1]);
    let mut file = File::open(path)?;
    loop {
        let room = MAX_SECRET + 1 - secret.len();
        let Some(space) = buffer.get_mut(..room).filter(|space| !space.is_empty()) else { break };
        match file.read(space) {
            Ok(0) => break,
            Ok(read) => secret.extend_from_slice(space.get(..read).unwrap_or_default()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    if secret.len() > MAX_SECRET {
        return Err(io::Error::other("it is larger than 4 KiB"));
    }
    if secret.last() == Some(&b'\n') {
        secret.pop();
    }
    if secret.is_empty() { Err(io::Error::other("it is empty")) } else { Ok(secret) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_newline_at_the_end_is_dropped_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        for (written, read) in [("pass", "pass"), ("pass\n", "pass"), ("pass\n\n", "pass\n"), (" p ", " p ")]
        {
            std::fs::write(&path, written).unwrap();
            assert_eq!(Secret::File(path.clone()).read().unwrap().as_slice(), read.as_bytes());
        }
        let credential = Secret::Credential("secret".into());
        let read = credential.read_with(Some(folder.path().as_os_str().to_owned())).unwrap();
        assert_eq!(read.as_slice(), b" p ");
    }

    #[test]
    fn what_is_wrong_is_named_and_nothing_of_the_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let error = |secret: &Secret| secret.read_with(None).unwrap_err().to_string();
        assert!(error(&Secret::File(path.clone())).contains("No such file"));
        assert!(error(&Secret::File(folder.path().into())).contains("not a regular file"));
        for (content, why) in [(String::new(), "empty"), ("\n".into(), "empty"), ("x".repeat(4097), "4 KiB")]
        {
            std::fs::write(&path, &content).unwrap();
            let error = error(&Secret::File(path.clone()));
            assert!(error.contains(why) && !error.contains("xx"), "{error}");
        }
        std::fs::write(&path, "x".repeat(4096)).unwrap();
        assert_eq!(Secret::File(path).read().unwrap().len(), 4096);
        let none = error(&Secret::Credential("proxy.auth".into()));
        assert!(none.contains("LoadCredential=proxy.auth:"), "{none}");
    }
}
