//! The attributes of a TPM object.

use std::fmt;

use tss_esapi::attributes::ObjectAttributes;

/// The attributes of a TPM object. Printed in the words of tpm2-tools: `fixedtpm|fixedparent|…`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)]
pub struct KeyAttributes {
    /// The key never leaves this TPM.
    pub fixed_tpm: bool,
    /// The key never moves to another parent.
    pub fixed_parent: bool,
    /// The TPM generated the private half itself; it was not imported.
    pub sensitive_data_origin: bool,
    /// The key is used with its password (an empty one here).
    pub user_with_auth: bool,
    /// Changes to the key are bound to a policy.
    pub admin_with_policy: bool,
    /// Exempt from dictionary-attack lock-out.
    pub no_da: bool,
    /// The key works on the TPM's own data only.
    pub restricted: bool,
    /// The key decrypts.
    pub decrypt: bool,
    /// The key signs.
    pub sign: bool,
}

impl KeyAttributes {
    /// Whether the TPM generated the key and will never export it (rule K1).
    #[must_use]
    pub fn non_exportable(&self) -> bool {
        self.fixed_tpm && self.fixed_parent && self.sensitive_data_origin
    }
}

impl fmt::Display for KeyAttributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (self.fixed_tpm, "fixedtpm"),
            (self.fixed_parent, "fixedparent"),
            (self.sensitive_data_origin, "sensitivedataorigin"),
            (self.user_with_auth, "userwithauth"),
            (self.admin_with_policy, "adminwithpolicy"),
            (self.no_da, "noda"),
            (self.restricted, "restricted"),
            (self.decrypt, "decrypt"),
            (self.sign, "sign"),
        ];
        let set: Vec<&str> = names.into_iter().filter_map(|(is_set, name)| is_set.then_some(name)).collect();
        f.write_str(&set.join("|"))
    }
}

impl From<ObjectAttributes> for KeyAttributes {
    fn from(of: ObjectAttributes) -> Self {
        Self {
            fixed_tpm: of.fixed_tpm(),
            fixed_parent: of.fixed_parent(),
            sensitive_data_origin: of.sensitive_data_origin(),
            user_with_auth: of.user_with_auth(),
            admin_with_policy: of.admin_with_policy(),
            no_da: of.no_da(),
            restricted: of.restricted(),
            decrypt: of.decrypt(),
            sign: of.sign_encrypt(),
        }
    }
}
