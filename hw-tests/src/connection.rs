//! The suite's own connection to the TPM, in addition to the agent's: what the TPM says for itself.

use std::collections::BTreeSet;
use std::str::FromStr;

use miaf_agent::keys::tpm::Tcti;
use miaf_agent::keys::tss2::{Parent, Tss2Key};
use tss_esapi::Context;
use tss_esapi::attributes::{ObjectAttributes, ObjectAttributesBuilder};
use tss_esapi::constants::response_code::Tss2ResponseCode;
use tss_esapi::constants::tss::{TPM2_RH_NULL, TPM2_ST_HASHCHECK};
use tss_esapi::constants::{CapabilityType, PropertyTag};
use tss_esapi::handles::{KeyHandle, PersistentTpmHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::key_bits::RsaKeyBits;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    CapabilityData, Digest, EccPoint, EccScheme, HashScheme, HashcheckTicket, Private, Public, PublicBuilder,
    PublicEccParametersBuilder, PublicKeyRsa, PublicRsaParametersBuilder, RsaExponent, RsaScheme, Signature,
    SignatureScheme, SymmetricDefinitionObject,
};
use tss_esapi::tcti_ldr::{DeviceConfig, NetworkTPMConfig, TabrmdConfig, TctiNameConf};
use tss_esapi::traits::UnMarshall;
use tss_esapi::tss2_esys::TPMT_TK_HASHCHECK;

use crate::Failure;

/// Opens a connection. What is still loaded when it is dropped is flushed.
pub(crate) fn open(tcti: &Tcti) -> Result<Context, Failure> {
    let setting = tcti.to_string();
    let way = match setting.split_once(':') {
        Some(("device", path)) => DeviceConfig::from_str(path).map(TctiNameConf::Device),
        Some(("swtpm", address)) => NetworkTPMConfig::from_str(address).map(TctiNameConf::Swtpm),
        _ => Ok(TctiNameConf::Tabrmd(TabrmdConfig::default())),
    };
    let mut context = way.and_then(Context::new).during("opening a connection")?;
    // Nothing here has a password, and an empty one is to be sent.
    context.set_sessions((Some(AuthSession::Password), None, None));
    Ok(context)
}

pub(crate) trait During<T> {
    /// Says what was being done, and gives the code in addition to its meaning.
    fn during(self, what: &str) -> Result<T, Failure>;
}

impl<T> During<T> for tss_esapi::Result<T> {
    fn during(self, what: &str) -> Result<T, Failure> {
        self.map_err(|error| format!("{what}: {error} (code {:#x})", code(&error)).into())
    }
}

/// The number behind an error; 0 if the TSS did not even ask the TPM. tss-esapi keeps it to itself
/// and prints it.
pub(crate) fn code(error: &tss_esapi::Error) -> u32 {
    let printed = match error {
        tss_esapi::Error::Tss2Error(Tss2ResponseCode::FormatZero(code)) => code.to_string(),
        tss_esapi::Error::Tss2Error(Tss2ResponseCode::FormatOne(code)) => code.to_string(),
        _ => return 0,
    };
    printed.rsplit_once("0x").and_then(|(_, hex)| u32::from_str_radix(hex, 16).ok()).unwrap_or(0)
}

/// A resource manager shows each connection its own transient objects only.
pub(crate) fn has_resource_manager(tcti: &Tcti) -> Result<bool, Failure> {
    let mut one = open(tcti)?;
    let mut other = open(tcti)?;
    let before = handles(&mut other, TRANSIENT)?;
    parent(&mut one)?;
    Ok(handles(&mut other, TRANSIENT)? == before)
}

/// Kinds of handles, by their first byte (TPM 2.0 specification, part 2, TPM_HT).
pub(crate) const NV: u32 = 0x0100_0000;
pub(crate) const LOADED_SESSION: u32 = 0x0200_0000;
pub(crate) const SAVED_SESSION: u32 = 0x0300_0000;
pub(crate) const TRANSIENT: u32 = 0x8000_0000;
pub(crate) const PERSISTENT: u32 = 0x8100_0000;

/// All handles of a kind.
pub(crate) fn handles(context: &mut Context, kind: u32) -> Result<BTreeSet<u32>, Failure> {
    let mut handles = BTreeSet::new();
    let mut first = kind;
    loop {
        let (capability, more) = context
            .execute_without_session(|context| context.get_capability(CapabilityType::Handles, first, 64))
            .during("asking for handles")?;
        let CapabilityData::Handles(list) = capability else {
            return Err("the TPM was asked for handles and answered something else".into());
        };
        // The kinds of sessions say in the first byte what they are, not where they were asked for.
        handles.extend(list.into_inner().into_iter().map(u32::from));
        match handles.last() {
            Some(last) if more => first = last + 1,
            _ => return Ok(handles),
        }
    }
}

/// A property as it is now: tss-esapi's own call remembers what it was once told.
pub(crate) fn property(context: &mut Context, tag: PropertyTag) -> Result<Option<u32>, Failure> {
    let (capability, _) = context
        .execute_without_session(|context| {
            context.get_capability(CapabilityType::TpmProperties, tag.into(), 1)
        })
        .during("asking for a property")?;
    let CapabilityData::TpmProperties(properties) = capability else {
        return Err("the TPM was asked for a property and answered something else".into());
    };
    Ok(properties.into_iter().find(|property| property.property() == tag).map(|property| property.value()))
}

/// A property that every TPM 2.0 has.
pub(crate) fn required(context: &mut Context, tag: PropertyTag) -> Result<u32, Failure> {
    property(context, tag)?.ok_or_else(|| format!("the TPM has no property {tag:?}").into())
}

/// The storage key of the agent, written down a second time: keys made under another would not load
/// under this one.
pub(crate) fn storage_key() -> Result<Public, Failure> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_restricted(true)
        .with_decrypt(true)
        .build()
        .during("the storage key's template")?;
    let parameters = PublicEccParametersBuilder::new_restricted_decryption_key(
        SymmetricDefinitionObject::AES_128_CFB,
        EccCurve::NistP256,
    )
    .build();
    parameters
        .and_then(|parameters| {
            PublicBuilder::new()
                .with_public_algorithm(PublicAlgorithm::Ecc)
                .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
                .with_object_attributes(attributes)
                .with_ecc_parameters(parameters)
                .with_ecc_unique_identifier(EccPoint::default())
                .build()
        })
        .during("the storage key's template")
}

/// What the attributes of a signing key can differ in.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    /// Whether it may never leave the TPM nor its parent.
    pub(crate) fixed: bool,
    /// Whether it is exempt from dictionary-attack lock-out.
    pub(crate) no_da: bool,
}

/// As the agent's keys are.
pub(crate) const AS_THE_AGENT_DOES: Kind = Kind { fixed: true, no_da: true };

pub(crate) fn signing_attributes(kind: Kind) -> Result<ObjectAttributes, Failure> {
    ObjectAttributesBuilder::new()
        .with_fixed_tpm(kind.fixed)
        .with_fixed_parent(kind.fixed)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(kind.no_da)
        .with_sign_encrypt(true)
        .build()
        .during("a key's template")
}

/// A template for a signing key on a curve, for ECDSA with one hash.
pub(crate) fn ecc_key(
    kind: Kind,
    curve: EccCurve,
    hash: HashingAlgorithm,
    policy: Digest,
) -> Result<Public, Failure> {
    let attributes = signing_attributes(kind)?;
    let scheme = EccScheme::EcDsa(HashScheme::new(hash));
    PublicEccParametersBuilder::new_unrestricted_signing_key(scheme, curve)
        .build()
        .and_then(|parameters| {
            PublicBuilder::new()
                .with_public_algorithm(PublicAlgorithm::Ecc)
                .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
                .with_object_attributes(attributes)
                .with_auth_policy(policy)
                .with_ecc_parameters(parameters)
                .with_ecc_unique_identifier(EccPoint::default())
                .build()
        })
        .during("a key's template")
}

/// A template for a P-256 signing key, as the agent makes them but for its attributes.
pub(crate) fn p256_key(kind: Kind) -> Result<Public, Failure> {
    ecc_key(kind, EccCurve::NistP256, HashingAlgorithm::Sha256, Digest::default())
}

/// A template for an RSA signing key.
pub(crate) fn rsa_key(kind: Kind, bits: RsaKeyBits) -> Result<Public, Failure> {
    let attributes = signing_attributes(kind)?;
    PublicRsaParametersBuilder::new_unrestricted_signing_key(RsaScheme::Null, bits, RsaExponent::default())
        .build()
        .and_then(|parameters| {
            PublicBuilder::new()
                .with_public_algorithm(PublicAlgorithm::Rsa)
                .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
                .with_object_attributes(attributes)
                .with_rsa_parameters(parameters)
                .with_rsa_unique_identifier(PublicKeyRsa::default())
                .build()
        })
        .during("a key's template")
}

/// Derives the storage key.
pub(crate) fn parent(context: &mut Context) -> Result<KeyHandle, Failure> {
    context
        .create_primary(Hierarchy::Owner, storage_key()?, None, None, None, None)
        .during("CreatePrimary")
        .map(|made| made.key_handle)
}

/// A storage key that is persistent in the TPM: the parent of the agent's keys where the owner has
/// a password.
fn persistent_parent(context: &mut Context, handle: u32) -> Result<KeyHandle, Failure> {
    let handle = PersistentTpmHandle::new(handle).during("the parent's handle")?;
    let found = context
        .execute_without_session(|context| context.tr_from_tpm_public(TpmHandle::Persistent(handle)))
        .during("ReadPublic of the parent")?;
    Ok(found.into())
}

/// Loads a key that the agent made, out of its PEM.
pub(crate) fn load(context: &mut Context, pem: &str) -> Result<KeyHandle, Failure> {
    let file = Tss2Key::from_pem(pem)?;
    let public = Public::unmarshall(&file.public).during("reading the public area")?;
    let private = Private::try_from(file.private).during("reading the private area")?;
    let parent = match file.parent {
        Parent::OwnerPrimary => parent(context)?,
        Parent::Persistent(handle) => persistent_parent(context, handle)?,
    };
    context.load(parent, private, public).during("Load")
}

/// Signs 32 bytes by ECDSA with SHA-256.
pub(crate) fn sign(context: &mut Context, key: KeyHandle) -> tss_esapi::Result<Signature> {
    let scheme = SignatureScheme::EcDsa { hash_scheme: HashScheme::new(HashingAlgorithm::Sha256) };
    // The ticket says nothing: a key that is not restricted signs any digest.
    let ticket =
        TPMT_TK_HASHCHECK { tag: TPM2_ST_HASHCHECK, hierarchy: TPM2_RH_NULL, digest: Default::default() };
    context.sign(key, Digest::try_from(vec![0x5a; 32])?, scheme, HashcheckTicket::try_from(ticket)?)
}
