//! The parent of the agent's keys: the owner's storage primary, derived each time, or a storage key
//! that is kept in the TPM.
//!
//! To derive the primary takes the owner password, if there is one, and an enabled hierarchy. On a
//! machine that Windows or an administrator has set up it may not be available, while any user of
//! the TPM may use the storage root key (SRK) at 0x81000001 (TCG TPM v2.0 Provisioning Guidance,
//! section 7.5.1).

use std::borrow::Cow;
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

use super::error::ParentFlaw;
use super::lockout_guard::{AuthAttempt, LockoutGuard};
use super::ops::{ecc_template, overwrite_command_buffer, with_persistent};
use super::response_code::{During, Failure, ParentProblem, Step};
use crate::hint::{Hint, Reason};
use crate::keys::tss2::Parent;
use crate::platform::credentials::{Secret, wipe_stack};

/// `key.parent`: the key of the TPM that new keys are created under. Keys that exist stay under
/// their own parent.
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

/// A text that is no `key.parent`.
#[derive(Debug, thiserror::Error)]
#[error("it is neither \"auto\", \"primary\", nor a persistent handle")]
pub struct BadParent;

impl Hint for BadParent {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let hint = "Write \"auto\", \"primary\", or the persistent handle of a storage key in the TPM, such \
                    as \"0x81000001\"";
        Some(hint.into())
    }
}

impl FromStr for ParentChoice {
    type Err = BadParent;

    fn from_str(text: &str) -> Result<Self, BadParent> {
        match text {
            "auto" => Ok(Self::Auto),
            "primary" => Ok(Self::Primary),
            _ => {
                let handle = text.strip_prefix("0x").and_then(|hex| u32::from_str_radix(hex, 16).ok());
                // 0x81 stands for persistent objects (TPM 2.0 specification, part 2,
                // TPM_HT).
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

/// Handle of the storage root key (TCG TPM v2.0 Provisioning Guidance, section 7.5.1).
const SRK: u32 = 0x8100_0001;

/// What is needed to use parents.
#[derive(Clone, Debug, Default)]
pub(super) struct Storage {
    pub(super) choice: ParentChoice,
    /// Location of the owner password, which is read at each use.
    pub(super) owner_auth: Option<Secret>,
    pub(super) lockout_guard: Arc<LockoutGuard>,
}

/// The parent that a key was created under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Under {
    pub(super) parent: Parent,
    /// Its name in the TPM, a digest of its public area: distinguishes it from another one at the
    /// same handle. Unknown for external keys, and not needed for a primary.
    pub(super) name: Option<Vec<u8>>,
}

impl Under {
    pub(super) fn unnamed(parent: Parent) -> Self {
        Self { parent, name: None }
    }
}

impl Storage {
    /// Runs `work` with the parent for a new key, and returns which one that was. `work` may be
    /// called twice.
    pub(super) fn with_new_parent<T>(
        &self,
        context: &mut Context,
        work: impl Fn(&mut Context, KeyHandle) -> Result<T, Failure>,
    ) -> Result<(Under, T), Failure> {
        let refused = match self.choice {
            ParentChoice::Persistent(handle) => return self.with_usable(context, handle, &work),
            ParentChoice::Primary => self.with_primary(context, &work),
            ParentChoice::Auto => match self.with_primary(context, &work) {
                Err(refused) if refused.forbids_the_primary() => {
                    return self.with_usable(context, SRK, &work).map_err(|srk| refused.with_srk(SRK, srk));
                }
                done => done,
            },
        };
        refused.map(|done| (Under::unnamed(Parent::OwnerPrimary), done))
    }

    /// Runs `work` with the parent of a key that exists. `work` may be called twice.
    pub(super) fn with_parent<T>(
        &self,
        context: &mut Context,
        under: &Under,
        work: impl Fn(&mut Context, KeyHandle) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        match under.parent {
            Parent::OwnerPrimary => match self.with_primary(context, &work) {
                // The SRK may be the very same key, kept before the owner had a password. If it is
                // another one, the TPM does not load the key under it.
                Err(refused) if refused.forbids_the_primary() => self
                    .with_usable(context, SRK, &work)
                    .map(|(_, done)| done)
                    .map_err(|srk| refused.with_srk(SRK, srk)),
                done => done,
            },
            Parent::Persistent(handle) => self
                .with_persistent(
                    context,
                    handle,
                    Step::Parent(handle),
                    |_, name| {
                        let is_another = under.name.as_deref().is_some_and(|known| known != name);
                        if is_another { Err(ParentProblem::Replaced) } else { Ok(()) }
                    },
                    &work,
                )
                .map(|(_, done)| done),
        }
    }

    /// Runs `work` as the owner, with its password where one is configured.
    pub(super) fn as_owner<T>(
        &self,
        context: &mut Context,
        step: Step,
        work: impl FnOnce(&mut Context) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let Some(secret) = &self.owner_auth else { return work(context) };
        let password = secret.read().map_err(|why| Failure::OwnerAuth(Reason::of(&why)))?;
        let length = password.len();
        let auth = tss_esapi::structures::Auth::try_from(password.as_slice()).map_err(|_| {
            Failure::OwnerAuth(format!("it is {length} bytes long, and no TPM takes more than 64").into())
        })?;
        let owner: ObjectHandle = Hierarchy::Owner.into();
        context.tr_set_auth(owner, auth).during(step)?;
        let done = work(context);
        // The TSS keeps its copy for the owner; this overwrites it.
        let wiped = context.tr_set_auth(owner, Default::default()).during(Step::Release);
        overwrite_command_buffer(context);
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

    /// With a persistent key that is fit for new keys.
    fn with_usable<T>(
        &self,
        context: &mut Context,
        handle: u32,
        work: &impl Fn(&mut Context, KeyHandle) -> Result<T, Failure>,
    ) -> Result<(Under, T), Failure> {
        let fit =
            |public: &Public, _: &[u8]| flaw(public).map_or(Ok(()), |why| Err(ParentProblem::Unfit(why)));
        let step = Step::NewParent(handle);
        let (name, done) = self.with_persistent(context, handle, step, fit, work)?;
        Ok((Under { parent: Parent::Persistent(handle), name: Some(name) }, done))
    }

    fn with_persistent<T>(
        &self,
        context: &mut Context,
        handle: u32,
        step: Step,
        check: impl FnOnce(&Public, &[u8]) -> Result<(), ParentProblem>,
        work: &impl Fn(&mut Context, KeyHandle) -> Result<T, Failure>,
    ) -> Result<(Vec<u8>, T), Failure> {
        let done = with_persistent(context, handle, step, |context, key| {
            let read = context.execute_without_session(|context| context.read_public(key));
            let (public, name, _) = read.during(step)?;
            check(&public, name.value()).map_err(|problem| Failure::Parent(handle, problem))?;
            // One with a password may be guarded against guessing, and the empty password is a
            // guess.
            let attempt = AuthAttempt::new(name.value(), &[]);
            self.lockout_guard.check(&attempt)?;
            let done = work(context, key);
            if let Err(failure) = &done
                && failure.is_about_the_parent()
            {
                self.lockout_guard.record(&attempt, failure);
            }
            done.map(|done| (name.value().to_vec(), done))
        });
        match done.as_ref().err().and_then(Failure::of_a_missing_parent) {
            Some(code) if is_disabled(context, handle) => {
                Err(Failure::Parent(handle, ParentProblem::Disabled(code)))
            }
            _ => done,
        }
    }
}

/// Whether a persistent handle is the owner's, and the owner hierarchy disabled: the TPM hides all
/// of them then.
fn is_disabled(context: &mut Context, handle: u32) -> bool {
    // TPM 2.0 specification, part 2: the platform's begin at PLATFORM_PERSISTENT; shEnable in
    // TPMA_STARTUP_CLEAR.
    const PLATFORM: u32 = 0x8180_0000;
    const STORAGE_ENABLED: u32 = 1 << 1;
    let mut enabled = || context.get_tpm_property(PropertyTag::StartupClear).ok().flatten();
    handle < PLATFORM && enabled().is_some_and(|state| state & STORAGE_ENABLED == 0)
}

/// Why a key cannot be the parent of the agent's.
fn flaw(public: &Public) -> Option<ParentFlaw> {
    let attributes = public.object_attributes();
    let is_strong = match public {
        Public::Ecc { parameters, .. } => {
            !matches!(parameters.ecc_curve(), EccCurve::NistP192 | EccCurve::NistP224)
        }
        Public::Rsa { parameters, .. } => parameters.key_bits() != RsaKeyBits::Rsa1024,
        _ => return Some(ParentFlaw::Kind),
    };
    if !attributes.restricted() || !attributes.decrypt() || attributes.sign_encrypt() {
        return Some(ParentFlaw::NotStorage);
    }
    if !attributes.user_with_auth() {
        return Some(ParentFlaw::Policy);
    }
    if !attributes.no_da() {
        return Some(ParentFlaw::NotExempt);
    }
    if !attributes.fixed_tpm() || !attributes.fixed_parent() {
        return Some(ParentFlaw::NotBound);
    }
    (!is_strong).then_some(ParentFlaw::Weak)
}

/// The template of the standard storage key, which OpenSSL's tpm2 provider and others derive too,
/// bit by bit. Another template gives another key, and keys created under the one do not load under
/// the other.
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
    fn parent_choice_is_parsed_strictly() {
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
            let error = text.parse::<ParentChoice>().unwrap_err();
            crate::hint::assert_apart(&error);
            assert!(error.hint().unwrap().contains("\"0x81000001\""), "{error}");
        }
    }
}
