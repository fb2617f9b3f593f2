//! Authorization values: the passwords of objects in the TPM.

use std::fmt;

use zeroize::Zeroizing;

use super::error::TpmError;
use crate::platform::credentials::Secret;

/// The password of a TPM key: its authorization value, in the words of the TPM 2.0 specification.
/// It is read for each use and wiped after it, and never shown.
#[derive(Clone)]
pub struct AuthValue(Source);

#[derive(Clone)]
enum Source {
    Value(Zeroizing<Vec<u8>>),
    Secret(Secret),
}

/// A password is no longer than the digest that the key's name is made with (TPM 2.0 specification,
/// part 1, "Authorization Values"), and SHA-512 is the longest. Bytes.
const LONGEST: usize = 64;

impl AuthValue {
    /// Takes a password as it is, up to the last byte. An empty one is the password of a key that
    /// has none. It stays in memory.
    ///
    /// # Errors
    /// [`TpmError::AuthTooLong`] if no TPM could have it.
    pub fn new(password: Zeroizing<Vec<u8>>) -> Result<Self, TpmError> {
        let auth = Self(Source::Value(password));
        auth.read().map(|_| auth)
    }

    /// The password in a file or a credential, which is read at each use.
    pub fn from_secret(secret: Secret) -> Self {
        Self(Source::Secret(secret))
    }

    /// The password, up to the last byte.
    ///
    /// [`TpmError::AuthUnreadable`], and [`TpmError::AuthTooLong`] if no TPM could have it.
    pub(super) fn read(&self) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let password = match &self.0 {
            Source::Value(password) => password.clone(),
            Source::Secret(secret) => secret.read().map_err(TpmError::AuthUnreadable)?,
        };
        check_length(&password, LONGEST, "a TPM").map(|()| password)
    }
}

/// Checks a password against the limit of `taker`, in bytes.
pub(super) fn check_length(password: &[u8], limit: usize, taker: &str) -> Result<(), TpmError> {
    let length = password.len();
    if length > limit {
        return Err(TpmError::AuthTooLong { length, taker: taker.into(), limit });
    }
    Ok(())
}

impl fmt::Debug for AuthValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthValue(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auth_value_has_a_limit_and_is_not_shown() {
        let auth = |length| AuthValue::new(Zeroizing::new(vec![b'x'; length]));
        assert_eq!(format!("{:?}", auth(64).unwrap()), "AuthValue(..)");
        assert!(auth(0).is_ok());
        let error = auth(65).unwrap_err();
        assert!(matches!(error, TpmError::AuthTooLong { length: 65, limit: 64, .. }), "{error:?}");
        assert!(!error.to_string().contains("xx"), "{error}");
    }
}
