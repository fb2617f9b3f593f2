//! The agent's own keys: created in the TPM under a parent, stored outside, encrypted by the TPM
//! (rules K1, K3).

use std::sync::{Mutex, PoisonError};

use tss_esapi::Context;
use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::structures::{EccScheme, Private, Public, PublicEccParametersBuilder};
use tss_esapi::traits::Marshall;
use tss_esapi::utils::TpmsContext;

use super::attributes::KeyAttributes;
use super::ops::{ecc_template, ecdsa, ecdsa_der, ecdsa_sha256, halves, sec1, sign_loaded, with_loaded};
use super::parent::{Storage, Under};
use super::response_code::{During, Failure, Step};
use crate::keys::tss2::{self, ORIGIN, Parent, Tss2Key};
use crate::keys::{KeyError, KeyFileError, KeyForm, PublicKey};

/// Creates a key under the configured parent (rules K1, K3).
pub(super) fn create(context: &mut Context, storage: &Storage) -> Result<LoadableKey, Failure> {
    let template = signing_key().during(Step::Create)?;
    let expected = template.object_attributes();
    let (under, (private, public)) = storage.with_new_parent(context, |context, parent| {
        let made = context.create(parent, template.clone(), None, None, None, None).during(Step::Create)?;
        Ok((made.out_private, made.out_public))
    })?;
    if public.object_attributes() != expected {
        let (expected, got) =
            (KeyAttributes::from(expected), KeyAttributes::from(public.object_attributes()));
        return Err(Failure::Deviant(format!("its attributes are {got}, not {expected}")));
    }
    LoadableKey::new(under, public, private).map_err(|why| Failure::Deviant(why.to_string()))
}

/// Loads a key, signs with it and flushes it. A key whose parent has to be derived is restored from
/// the context that the TPM saved when it was loaded first, which needs no parent: to derive that
/// takes longer than everything else together.
pub(super) fn sign(
    context: &mut Context,
    key: &LoadableKey,
    digest: &[u8; 32],
    storage: &Storage,
) -> Result<Vec<u8>, Failure> {
    let scheme = ecdsa(HashingAlgorithm::Sha256);
    // The TPM restores nothing from before it was reset or cleared. Whether the key itself is at
    // fault, too, is found out by loading it.
    if let Some(loaded) = key.context().and_then(|saved| context.context_load(saved).ok()) {
        let signed = sign_loaded(context, loaded.into(), digest, scheme);
        let flushed = context.flush_context(loaded).during(Step::Release);
        return ecdsa_der(&signed.and_then(|signature| flushed.map(|()| signature))?);
    }
    let (signature, saved) = storage.with_parent(context, &key.under, |context, parent| {
        with_loaded(context, parent, &key.private, &key.public, |context, loaded| {
            let signature = sign_loaded(context, loaded, digest, scheme)?;
            let is_derived = key.under.parent == Parent::OwnerPrimary;
            let saved = is_derived.then(|| context.context_save(loaded.into()).ok()); // without, it is loaded the next time
            Ok((signature, saved.flatten()))
        })
    })?;
    key.set_context(saved);
    ecdsa_der(&signature)
}

/// The two halves of a key as the TPM takes them, checked to be those of a P-256 signing key.
pub(super) struct LoadableKey {
    under: Under,
    public: Public,
    private: Private,
    point: PublicKey,
    /// The context of the loaded key, encrypted by the TPM.
    context: Mutex<Option<TpmsContext>>,
}

impl LoadableKey {
    /// Takes the halves from a key file, written by [`LoadableKey::to_pem`] or another program.
    pub(super) fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let file = Tss2Key::from_pem(pem)?;
        let (public, private) = halves(&file)?;
        Self::new(Under { parent: file.parent, name: tss2::parent_name(pem) }, public, private)
    }

    /// The form of a key file, with the name of its parent before the block, where readers of PEM
    /// pass over it.
    pub(super) fn to_pem(&self) -> Result<String, KeyError> {
        let pem = self.to_tss2()?.to_pem()?;
        Ok(match &self.under.name {
            Some(name) => tss2::with_parent_name(&pem, name),
            None => pem,
        })
    }

    /// The key of the TPM that it was created under.
    pub(super) fn parent(&self) -> Parent {
        self.under.parent
    }

    /// The halves in the form of a key file.
    pub(super) fn to_tss2(&self) -> Result<Tss2Key, KeyError> {
        let public = self
            .public
            .marshall()
            .map_err(|_| KeyError::Internal("cannot write the public area of a TPM key".into()))?;
        Ok(Tss2Key { parent: self.under.parent, public, private: self.private.value().to_vec() })
    }

    pub(super) fn public_key(&self) -> &PublicKey {
        &self.point
    }

    pub(super) fn attributes(&self) -> KeyAttributes {
        self.public.object_attributes().into()
    }

    fn new(under: Under, public: Public, private: Private) -> Result<Self, KeyError> {
        let unsupported = |what| KeyFileError::unsupported(ORIGIN, KeyForm::OtherTss2(what));
        let Public::Ecc { object_attributes, parameters, unique, .. } = &public else {
            return Err(unsupported("not for an elliptic-curve key; only P-256 is supported"));
        };
        if parameters.ecc_curve() != EccCurve::NistP256 {
            return Err(unsupported("on another curve than P-256"));
        }
        if !matches!(parameters.ecc_scheme(), EccScheme::Null) && parameters.ecc_scheme() != ecdsa_sha256() {
            return Err(unsupported("bound to another scheme than ECDSA with SHA-256"));
        }
        if !object_attributes.sign_encrypt() || object_attributes.restricted() {
            return Err(unsupported("not one for signing, or one for the TPM's own statements only"));
        }
        let point = sec1(unique, 32)
            .ok_or(KeyError::BadPublicKey { why: "a coordinate is longer than 32 bytes" })
            .and_then(|point| PublicKey::from_sec1(&point))
            .map_err(|why| KeyFileError::malformed(ORIGIN, why.to_string()))?;
        Ok(Self { under, point, public, private, context: Mutex::default() })
    }

    fn context(&self) -> Option<TpmsContext> {
        self.context.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_context(&self, saved: Option<TpmsContext>) {
        *self.context.lock().unwrap_or_else(PoisonError::into_inner) = saved;
    }
}

/// The template of the agent's keys: created by the TPM, bound to it, for ECDSA with SHA-256 and
/// nothing else (rules K1, K3). Exempt from lock-out: a power cut after its use would count as an
/// attempt to guess its password, which it does not have.
fn signing_key() -> tss_esapi::Result<Public> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_sign_encrypt(true)
        .build()?;
    let parameters =
        PublicEccParametersBuilder::new_unrestricted_signing_key(ecdsa_sha256(), EccCurve::NistP256)
            .build()?;
    ecc_template(attributes, parameters)
}
