//! The key under which others are made and loaded: the owner's storage primary, derived each time, or a storage key that
//! is kept in the TPM.
//!
//! To derive the primary takes the owner's password, if there is one, and an enabled hierarchy. On a machine that Windows
//! or an administrator has set up it may be out of reach, while the storage root key (SRK) at 0x81000001 can be used by
//! everybody (TCG TPM v2.0 Provisioning Guidance, section 7.5.1).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use tss_esapi::Context;
use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::constants::PropertyTag;
use tss_esapi::handles::{KeyHandle, ObjectHandle};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::key_bits::RsaKeyBits;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::structures::{Public, PublicEccParametersBuilder, SymmetricDefinitionObject};

use super::chip::{ecc_template, with_persistent, write_over_command};
use super::failure::{During, Failure, ParentTrouble, Step};
use super::guard::{Pair, Refusals};
use crate::keys::tss2::Parent;
use crate::platform::credentials::{Secret, wipe_stack};

/// `key.parent`: under which key of the TPM new keys are made. Keys that were made stay under their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ParentChoice {
    /// `auto`: the owner's primary; where that may not be derived, the SRK at 0x81000001.
    #[default]
    Auto,
    /// `primary`: the owner's primary alone.
    Primary,
    /// `0x81……`: the storage key at this persistent handle.
    Persistent(u32),
}

/// Not a `key.parent`.
#[derive(Debug, thiserror::Error)]
#[error(
    "write \"auto\", \"primary\", or the persistent handle of a storage key in the TPM, such as \"0x81000001\""
)]
pub struct BadParent;

impl FromStr for ParentChoice {
    type Err = BadParent;

    fn from_str(text: &str) -> Result<Self, BadParent> {
        match text {
            "auto" => Ok(Self::Auto),
            "primary" => Ok(Self::Primary),
            _ => {
                let handle = text.strip_prefix("0x").and_then(|hex| u32::from_str_radix(hex, 16).ok());
                // 0x81 stands for what is kept over power cycles (TPM 2.0 specification, part 2, TPM_HT).
                handle.filter(|handle| handle >> 24 == 0x81).map(Self::Persistent).ok_or(BadParent)
            }
        }
    }
}

impl fmt::Display for ParentChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Primary => f.write_str("primary"),
            Self::Persistent(handle) => write!(f, "{handle:#010x}"),
        }
    }
}

/// Where the TCG has the storage root key.
pub(super) const SRK: u32 = 0x8100_0001;

/// What it takes to use parents.
#[derive(Clone, Debug, Default)]
pub(super) struct Storage {
    pub(super) choice: ParentChoice,
    /// Where the owner's password is. Read at each use.
    pub(super) owner_auth: Option<Secret>,
    pub(super) refusals: Arc<Refusals>,
}

/// The parent that a key was made under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Under {
    pub(super) parent: Parent,
    /// What the TPM calls it by, a digest of its public area: tells it from another one at its handle. Unknown for keys
    /// that somebody else made, and not needed for a primary.
    pub(super) name: Option<Vec<u8>>,
}

impl Under {
    pub(super) fn unnamed(parent: Parent) -> Self {
        Self { parent, name: None }
    }
}

impl Storage {
    /// Has `work` done with the parent for a new key in place, and says which one that was. `work` may be called twice.
    pub(super) fn with_new<T>(
        &self,
        context: &mut Context,
        work: impl Fn(&mut Context, KeyHandle) -> Result<T, Failure>,
    ) -> Result<(Under, T), Failure> {
        let refused = match self.choice {
            ParentChoice::Persistent(handle) => return self.with_usable(context, handle, &work),
            ParentChoice::Primary => self.with_primary(context, &work),
            ParentChoice::Auto => match self.with_primary(context, &work) {
                Err(refused) if refused.forbids_the_primary() => {
                    return self.with_usable(context, SRK, &work).map_err(|srk| refused.nor(srk));
                }
                done => done,
            },
        };
        refused.map(|done| (Under::unnamed(Parent::OwnerPrimary), done))
    }

    /// Has `work` done with the parent of a key that is there in place. `work` may be called twice.
    pub(super) fn with_known<T>(
        &self,
        context: &mut Context,
        under: &Under,
        work: impl Fn(&mut Context, KeyHandle) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        match under.parent {
            Parent::OwnerPrimary => match self.with_primary(context, &work) {
                // The SRK may be the very same key, kept before the owner had a password. If it is another one, the TPM
                // does not load the key under it.
                Err(refused) if refused.forbids_the_primary() => self
                    .with_usable(context, SRK, &work)
                    .map(|(_, done)| done)
                    .map_err(|srk| refused.nor(srk)),
                done => done,
            },
            Parent::Persistent(handle) => self
                .with_persistent(
                    context,
                    handle,
                    |_, name| {
                        let is_another = under.name.as_deref().is_some_and(|known| known != name);
                        if is_another { Err(ParentTrouble::Replaced) } else { Ok(()) }
                    },
                    &work,
                )
                .map(|(_, done)| done),
        }
    }

    /// Has `work` done as the owner, with its password where one is configured.
    pub(super) fn as_owner<T>(
        &self,
        context: &mut Context,
        step: Step,
        work: impl FnOnce(&mut Context) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let Some(secret) = &self.owner_auth else { return work(context) };
        let password = secret.read().map_err(|why| Failure::OwnerAuth(why.to_string()))?;
        let length = password.len();
        let auth = tss_esapi::structures::Auth::try_from(password.as_slice()).map_err(|_| {
            Failure::OwnerAuth(format!(
                "it is {length} bytes long, and no TPM takes more than 64; check that it is the \
                                        right file and that nothing follows the password in it"
            ))
        })?;
        let owner: ObjectHandle = Hierarchy::Owner.into();
        context.tr_set_auth(owner, auth).during(step)?;
        let done = work(context);
        // The TSS keeps its copy for the owner; this writes over it.
        let wiped = context.tr_set_auth(owner, Default::default()).during(Step::Release);
        write_over_command(context);
        wipe_stack();
        let value = done?;
        wiped.map(|()| value)
    }

    fn with_primary<T>(
        &self,
        context: &mut Context,
        work: &impl Fn(&mut Context, KeyHandle) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let step = if self.owner_auth.is_some() { Step::PrimaryByPassword } else { Step::Primary };
        let template = storage_key().during(step)?;
        let handle = self.as_owner(context, step, |context| {
            let made = context.create_primary(Hierarchy::Owner, template, None, None, None, None);
            made.map(|made| made.key_handle).during(step)
        })?;
        let done = work(context, handle);
        let flushed = context.flush_context(handle.into()).during(Step::Release);
        let value = done?;
        flushed.map(|()| value)
    }

    /// A persistent key that is fit for new keys.
    fn with_usable<T>(
        &self,
        context: &mut Context,
        handle: u32,
        work: &impl Fn(&mut Context, KeyHandle) -> Result<T, Failure>,
    ) -> Result<(Under, T), Failure> {
        let fit =
            |public: &Public, _: &[u8]| unfit(public).map_or(Ok(()), |why| Err(ParentTrouble::Unfit(why)));
        let (name, done) = self.with_persistent(context, handle, fit, work)?;
        Ok((Under { parent: Parent::Persistent(handle), name: Some(name) }, done))
    }

    fn with_persistent<T>(
        &self,
        context: &mut Context,
        handle: u32,
        check: impl FnOnce(&Public, &[u8]) -> Result<(), ParentTrouble>,
        work: &impl Fn(&mut Context, KeyHandle) -> Result<T, Failure>,
    ) -> Result<(Vec<u8>, T), Failure> {
        let step = Step::Parent(handle);
        let done = with_persistent(context, handle, step, |context, key| {
            let read = context.execute_without_session(|context| context.read_public(key));
            let (public, name, _) = read.during(step)?;
            check(&public, name.value()).map_err(|trouble| Failure::Parent(handle, trouble))?;
            // One with a password may be guarded against guessing, and the empty one is a guess.
            let pair = Pair::new(name.value(), &[]);
            self.refusals.check(&pair)?;
            let done = work(context, key);
            if let Err(failure) = &done
                && failure.is_about_the_parent()
            {
                self.refusals.note(&pair, failure);
            }
            done.map(|done| (name.value().to_vec(), done))
        });
        match done.as_ref().err().and_then(Failure::of_a_missing_parent) {
            Some(code) if is_disabled(context, handle) => {
                Err(Failure::Parent(handle, ParentTrouble::Disabled(code)))
            }
            _ => done,
        }
    }
}

/// Whether a persistent handle is the owner's, and the owner hierarchy disabled: the TPM hides all of them then.
fn is_disabled(context: &mut Context, handle: u32) -> bool {
    // TPM 2.0 specification, part 2: the platform's begin at PLATFORM_PERSISTENT; shEnable in TPMA_STARTUP_CLEAR.
    const PLATFORM: u32 = 0x8180_0000;
    const STORAGE_ENABLED: u32 = 1 << 1;
    let mut enabled = || context.get_tpm_property(PropertyTag::StartupClear).ok().flatten();
    handle < PLATFORM && enabled().is_some_and(|state| state & STORAGE_ENABLED == 0)
}

/// Why a key cannot be the parent of the agent's, and what to do.
fn unfit(public: &Public) -> Option<&'static str> {
    let attributes = public.object_attributes();
    let is_strong = match public {
        Public::Ecc { parameters, .. } => {
            !matches!(parameters.ecc_curve(), EccCurve::NistP192 | EccCurve::NistP224)
        }
        Public::Rsa { parameters, .. } => parameters.key_bits() != RsaKeyBits::Rsa1024,
        _ => return Some("it is neither an ECC nor an RSA key; give the handle of a storage key"),
    };
    if !attributes.restricted() || !attributes.decrypt() || attributes.sign_encrypt() {
        return Some(
            "it is not a storage key (attributes restricted and decrypt, and not sign); give the handle of one",
        );
    }
    if !attributes.user_with_auth() {
        return Some(
            "its use is bound to a policy (userwithauth is clear), which the agent does not support; use one made with \
             the attribute userwithauth",
        );
    }
    if !attributes.no_da() {
        return Some(
            "it is not exempt from dictionary-attack lock-out (noda is clear), so each power cut after its use would \
             count as a wrong password; use one made with the attribute noda",
        );
    }
    if !attributes.fixed_tpm() || !attributes.fixed_parent() {
        return Some(
            "it is not bound to this TPM (fixedtpm or fixedparent is clear), so keys under it would not be either; use \
             one made with these attributes",
        );
    }
    (!is_strong).then_some("it is weaker than the keys under it; use one of P-256 or RSA 2048, or stronger")
}

/// The standard storage key: what OpenSSL's tpm2 provider and others derive too, to the last bit. Another template
/// gives another key, and keys made under the one do not load under the other.
fn storage_key() -> tss_esapi::Result<Public> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_restricted(true)
        .with_decrypt(true)
        .build()?;
    let parameters = PublicEccParametersBuilder::new_restricted_decryption_key(
        SymmetricDefinitionObject::AES_128_CFB,
        EccCurve::NistP256,
    )
    .build()?;
    ecc_template(attributes, parameters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parent_choices_are_read_strictly() {
        for text in ["auto", "primary", "0x81000001", "0x81ffffff"] {
            assert_eq!(text.parse::<ParentChoice>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "Auto",
            "81000001",
            "0x80000001",
            "0x40000001",
            "0x01c00001",
            "0x",
            "tpm:0x81000001",
            "2164260865",
        ] {
            let error = text.parse::<ParentChoice>().unwrap_err().to_string();
            assert!(error.contains("\"0x81000001\""), "{error}");
        }
    }
}
