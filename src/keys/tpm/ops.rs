//! Operations on objects of the TPM, and their encodings.

use der::asn1::UintRef;
use der::{Encode, Sequence};
use tss_esapi::Context;
use tss_esapi::attributes::ObjectAttributes;
use tss_esapi::constants::PropertyTag;
use tss_esapi::constants::tss::{TPM2_RH_NULL, TPM2_ST_HASHCHECK};
use tss_esapi::handles::{KeyHandle, PersistentTpmHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::structures::{
    Digest, EccPoint, EccScheme, HashScheme, HashcheckTicket, Private, Public, PublicBuilder,
    PublicEccParameters, SensitiveData, Signature, SignatureScheme,
};
use tss_esapi::traits::{Marshall, UnMarshall};
use tss_esapi::tss2_esys::TPMT_TK_HASHCHECK;

use super::response_code::{During, Failure, Step};
use crate::keys::tss2::{ORIGIN, Tss2Key};
use crate::keys::{KeyError, KeyFileError};

/// Manufacturer, model and firmware version.
pub(super) fn describe(context: &mut Context) -> Result<String, Failure> {
    let mut property =
        |tag| context.get_tpm_property(tag).during(Step::Describe).map(Option::unwrap_or_default);
    let text =
        |value: u32| value.to_be_bytes().into_iter().filter(u8::is_ascii_graphic).map(char::from).collect();
    let maker: String = text(property(PropertyTag::Manufacturer)?);
    let mut model = String::new();
    for tag in [
        PropertyTag::VendorString1,
        PropertyTag::VendorString2,
        PropertyTag::VendorString3,
        PropertyTag::VendorString4,
    ] {
        let part: String = text(property(tag)?);
        model.push_str(&part);
    }
    let (high, low) = (property(PropertyTag::FirmwareVersion1)?, property(PropertyTag::FirmwareVersion2)?);
    let [a, b, c, d] = [high >> 16, high & 0xffff, low >> 16, low & 0xffff];
    Ok(format!("{maker} {model}, firmware {a}.{b}.{c}.{d}"))
}

/// The two halves out of a key file, in the types of the TSS.
pub(super) fn halves(file: &Tss2Key) -> Result<(Public, Private), KeyError> {
    let malformed = |why: &str| KeyFileError::malformed(ORIGIN, why);
    let public = Public::unmarshall(&file.public).map_err(|_| malformed("its public area cannot be read"))?;
    // What was read is what was there, to the last byte.
    if public.marshall().ok().as_ref() != Some(&file.public) {
        return Err(malformed("its public area has bytes too many or out of place"));
    }
    let private =
        Private::try_from(file.private.as_slice()).map_err(|_| malformed("its private area is too long"))?;
    Ok((public, private))
}

/// Loads a key under its parent, runs `work` with it, and flushes it whatever the outcome.
pub(super) fn with_loaded<T>(
    context: &mut Context,
    parent: KeyHandle,
    private: &Private,
    public: &Public,
    work: impl FnOnce(&mut Context, KeyHandle) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let handle = context.load(parent, private.clone(), public.clone()).during(Step::Load)?;
    let done = work(context, handle);
    let flushed = context.flush_context(handle.into()).during(Step::Release);
    let value = done?;
    flushed.map(|()| value)
}

/// Runs `work` with a persistent key, which stays in the TPM.
pub(super) fn with_persistent<T>(
    context: &mut Context,
    number: u32,
    step: Step,
    work: impl FnOnce(&mut Context, KeyHandle) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let handle = PersistentTpmHandle::new(number).during(step)?;
    let mut handle = context
        .execute_without_session(|context| context.tr_from_tpm_public(TpmHandle::Persistent(handle)))
        .during(step)?;
    let done = work(context, handle.into());
    let closed = context.tr_close(&mut handle).during(Step::Release);
    let value = done?;
    closed.map(|()| value)
}

pub(super) fn sign_loaded(
    context: &mut Context,
    key: KeyHandle,
    digest: &[u8],
    scheme: SignatureScheme,
) -> Result<Signature, Failure> {
    let digest = Digest::try_from(digest).during(Step::Sign)?;
    // The ticket says nothing: a key that is not restricted signs any digest.
    let no_ticket =
        TPMT_TK_HASHCHECK { tag: TPM2_ST_HASHCHECK, hierarchy: TPM2_RH_NULL, digest: Default::default() };
    let no_ticket = HashcheckTicket::try_from(no_ticket).during(Step::Sign)?;
    context.sign(key, digest, scheme, no_ticket).during(Step::Sign)
}

/// Overwrites a password in the command buffer of the TSS, which is wiped neither after a command
/// nor when it is freed: by a StirRandom, which every TPM has and to which zeros do no harm.
pub(super) fn overwrite_command_buffer(context: &mut Context) {
    let Ok(zeros) = SensitiveData::try_from(vec![0; COMMAND_BUFFER]) else { return };
    // An error of the connection was met by the command before, and is reported there.
    let _ = context.execute_without_session(|context| context.stir_random(zeros));
}

/// As far into a command as a password can reach: 27 bytes before it, and 64 of it (TPM 2.0
/// specification, part 1, "Command Structure"). No more than 128 can be stirred (part 2,
/// `MAX_SYM_DATA`).
const COMMAND_BUFFER: usize = 128;

pub(super) fn ecdsa(hash: HashingAlgorithm) -> SignatureScheme {
    SignatureScheme::EcDsa { hash_scheme: HashScheme::new(hash) }
}

pub(super) fn ecc_template(
    attributes: ObjectAttributes,
    parameters: PublicEccParameters,
) -> tss_esapi::Result<Public> {
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_ecc_parameters(parameters)
        .with_ecc_unique_identifier(EccPoint::default())
        .build()
}

pub(super) fn ecdsa_sha256() -> EccScheme {
    EccScheme::EcDsa(HashScheme::new(HashingAlgorithm::Sha256))
}

/// The point in SEC1 form, with coordinates of `length` bytes. Some TPMs leave out leading zeros.
pub(super) fn sec1(point: &EccPoint, length: usize) -> Option<Vec<u8>> {
    let mut sec1 = vec![4];
    for coordinate in [point.x().value(), point.y().value()] {
        sec1.extend(std::iter::repeat_n(0, length.checked_sub(coordinate.len())?));
        sec1.extend_from_slice(coordinate);
    }
    Some(sec1)
}

/// `Ecdsa-Sig-Value` of RFC 3279.
#[derive(Sequence)]
struct EcdsaSignature<'a> {
    r: UintRef<'a>,
    s: UintRef<'a>,
}

pub(super) fn ecdsa_der(signature: &Signature) -> Result<Vec<u8>, Failure> {
    let Signature::EcDsa(signature) = signature else {
        return Err(Failure::Deviant("its signature is not an ECDSA one".into()));
    };
    let (r, s) = (signature.signature_r().value(), signature.signature_s().value());
    let encode = || EcdsaSignature { r: UintRef::new(r)?, s: UintRef::new(s)? }.to_der();
    encode().map_err(|why| Failure::Deviant(format!("its signature cannot be written in DER: {why}")))
}
