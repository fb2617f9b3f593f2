//! What is done on the chip, and what its answers mean.

use std::sync::{Mutex, PoisonError};

use der::asn1::UintRef;
use der::{Encode, Sequence};
use tss_esapi::Context;
use tss_esapi::attributes::{ObjectAttributes, ObjectAttributesBuilder};
use tss_esapi::constants::PropertyTag;
use tss_esapi::constants::tss::{TPM2_RH_NULL, TPM2_ST_HASHCHECK};
use tss_esapi::handles::{KeyHandle, PersistentTpmHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    Digest, EccPoint, EccScheme, HashScheme, HashcheckTicket, Private, Public, PublicBuilder,
    PublicEccParameters, PublicEccParametersBuilder, SensitiveData, Signature, SignatureScheme,
};
use tss_esapi::traits::{Marshall, UnMarshall};
use tss_esapi::tss2_esys::TPMT_TK_HASHCHECK;
use tss_esapi::utils::TpmsContext;

use super::KeyAttributes;
use super::failure::{During, Failure, Step};
use super::parent::{Storage, Under};
use super::tcti::Tcti;
use crate::keys::tss2::{self, Parent, Tss2Key};
use crate::keys::{KeyError, KeyForm, PublicKey};

/// Makes a key under the parent that is configured (rules K1, K3).
pub(super) fn create(context: &mut Context, storage: &Storage) -> Result<LoadableKey, Failure> {
    let template = signing_key().during(Step::Create)?;
    let wanted = template.object_attributes();
    let (under, (private, public)) = storage.with_new(context, |context, parent| {
        let made = context.create(parent, template.clone(), None, None, None, None).during(Step::Create)?;
        Ok((made.out_private, made.out_public))
    })?;
    if public.object_attributes() != wanted {
        let (wanted, got) = (attributes(wanted), attributes(public.object_attributes()));
        return Err(Failure::Deviant(format!("its attributes are {got}, not {wanted}")));
    }
    LoadableKey::new(under, public, private).map_err(|why| Failure::Deviant(why.to_string()))
}

/// Loads a key, signs with it and flushes it. A key whose parent has to be derived is taken back as the TPM saved it when it
/// was loaded first, which needs no parent: on a chip, to derive that takes longer than everything else together.
pub(super) fn sign(
    context: &mut Context,
    key: &LoadableKey,
    digest: &[u8; 32],
    storage: &Storage,
) -> Result<Vec<u8>, Failure> {
    let scheme = ecdsa(HashingAlgorithm::Sha256);
    // The TPM takes back nothing from before it was reset or cleared: whether anything is wrong with the key, too, the long
    // way will tell.
    if let Some(loaded) = key.saved().and_then(|saved| context.context_load(saved).ok()) {
        let signed = sign_loaded(context, loaded.into(), digest, scheme);
        let flushed = context.flush_context(loaded).during(Step::Release);
        return ecdsa_der(&signed.and_then(|signature| flushed.map(|()| signature))?);
    }
    let (signature, saved) = storage.with_known(context, &key.under, |context, parent| {
        with_loaded(context, parent, &key.private, &key.public, |context, loaded| {
            let signature = sign_loaded(context, loaded, digest, scheme)?;
            let is_derived = key.under.parent == Parent::OwnerPrimary;
            let saved = is_derived.then(|| context.context_save(loaded.into()).ok()); // without, the long way again
            Ok((signature, saved.flatten()))
        })
    })?;
    key.save(saved);
    ecdsa_der(&signature)
}

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

/// The two halves of a key as the TPM takes them, checked to be those of a P-256 signing key.
pub(super) struct LoadableKey {
    under: Under,
    public: Public,
    private: Private,
    point: PublicKey,
    /// As the TPM had it loaded, encrypted by the TPM.
    saved: Mutex<Option<TpmsContext>>,
}

impl LoadableKey {
    /// Takes the halves out of a key file, as [`LoadableKey::to_pem`] or somebody else wrote it.
    pub(super) fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let file = Tss2Key::from_pem(pem)?;
        let (public, private) = halves(&file)?;
        Self::new(Under { parent: file.parent, name: tss2::parent_name(pem) }, public, private)
    }

    /// The form of a key file, with the name of its parent before the block, where readers of PEM pass over it.
    pub(super) fn to_pem(&self) -> Result<String, KeyError> {
        let pem = self.to_tss2()?.to_pem()?;
        Ok(match &self.under.name {
            Some(name) => tss2::with_parent_name(&pem, name),
            None => pem,
        })
    }

    /// Under which key of the TPM it was made.
    pub(super) fn parent(&self) -> Parent {
        self.under.parent
    }

    /// Puts the halves in the form of a key file.
    pub(super) fn to_tss2(&self) -> Result<Tss2Key, KeyError> {
        let public = self
            .public
            .marshall()
            .map_err(|why| KeyError::Internal(format!("cannot write the public area of a TPM key: {why}")))?;
        Ok(Tss2Key { parent: self.under.parent, public, private: self.private.value().to_vec() })
    }

    pub(super) fn public_key(&self) -> &PublicKey {
        &self.point
    }

    pub(super) fn attributes(&self) -> KeyAttributes {
        attributes(self.public.object_attributes())
    }

    fn new(under: Under, public: Public, private: Private) -> Result<Self, KeyError> {
        let unsupported =
            |what| KeyError::Unsupported { origin: ORIGIN.into(), form: KeyForm::OtherTss2(what) };
        let Public::Ecc { object_attributes, parameters, unique, .. } = &public else {
            return Err(unsupported("not for an elliptic-curve key; P-256 is wanted"));
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
            .ok_or(KeyError::BadPublicKey { why: "a coordinate is longer than 32 octets" })
            .and_then(|point| PublicKey::from_sec1(&point))
            .map_err(|why| KeyError::Malformed { origin: ORIGIN.into(), why: why.to_string() })?;
        Ok(Self { under, point, public, private, saved: Mutex::default() })
    }

    fn saved(&self) -> Option<TpmsContext> {
        self.saved.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn save(&self, saved: Option<TpmsContext>) {
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = saved;
    }
}

/// The two halves out of a key file, in the types of the TSS.
pub(super) fn halves(file: &Tss2Key) -> Result<(Public, Private), KeyError> {
    let malformed = |why: &str| KeyError::Malformed { origin: ORIGIN.into(), why: why.into() };
    let public = Public::unmarshall(&file.public).map_err(|_| malformed("its public area cannot be read"))?;
    // What was read is what was there, to the last octet.
    if public.marshall().ok().as_ref() != Some(&file.public) {
        return Err(malformed("its public area has octets too many or out of place"));
    }
    let private =
        Private::try_from(file.private.as_slice()).map_err(|_| malformed("its private area is too long"))?;
    Ok((public, private))
}

const ORIGIN: &str = "the file of the TPM key";

/// Has `work` done with a key loaded under its parent, and flushes it whatever comes of it.
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

/// Has `work` done with a persistent key, which stays in the TPM.
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

/// Writes over the password in the buffer of the TSS for commands, which is neither wiped after a command nor when it is
/// freed. Random numbers are stirred by every TPM, with nothing but the bytes that are given; zeros do them no harm.
pub(super) fn write_over_command(context: &mut Context) {
    let Ok(zeros) = SensitiveData::try_from(vec![0; COMMAND]) else { return };
    // What may go wrong went wrong before, and is reported.
    let _ = context.execute_without_session(|context| context.stir_random(zeros));
}

/// As far into a command as a password can reach: 27 bytes before it, and 64 of it (TPM 2.0 specification, part 1,
/// "Command Structure"). No more than 128 can be stirred (part 2, `MAX_SYM_DATA`).
const COMMAND: usize = 128;

pub(super) fn ecdsa(hash: HashingAlgorithm) -> SignatureScheme {
    SignatureScheme::EcDsa { hash_scheme: HashScheme::new(hash) }
}

/// The agent's own key: made by the TPM, bound to it, for ECDSA with SHA-256 and nothing else (rules K1, K3). Exempt
/// from lock-out: a power cut after its use would count as an attempt to guess its password, which it does not have.
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

fn ecdsa_sha256() -> EccScheme {
    EccScheme::EcDsa(HashScheme::new(HashingAlgorithm::Sha256))
}

fn attributes(of: ObjectAttributes) -> KeyAttributes {
    KeyAttributes {
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

/// The point in SEC1 form, with coordinates of `length` octets. Some TPMs leave out leading zeros.
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

/// The connection to the TPM, opened when it is needed.
pub(super) struct Chip {
    tcti: Tcti,
    connection: Option<Context>,
}

impl Chip {
    pub(super) fn new(tcti: Tcti) -> Self {
        Self { tcti, connection: None }
    }

    /// Carries out an operation; once more on a fresh connection, if the connection failed or the TPM was reset.
    pub(super) fn run<T>(
        &mut self,
        operation: &impl Fn(&mut Context) -> Result<T, Failure>,
    ) -> Result<T, KeyError> {
        self.attempt(operation)
            .or_else(|failure| if failure.may_be_repeated() { self.attempt(operation) } else { Err(failure) })
            .map_err(|failure| failure.explain(&self.tcti))
    }

    fn attempt<T>(&mut self, operation: &impl Fn(&mut Context) -> Result<T, Failure>) -> Result<T, Failure> {
        let mut context = match self.connection.take() {
            Some(context) => context,
            None => self.open().during(Step::Open)?,
        };
        let done = operation(&mut context);
        // After any failure the connection is dropped, which flushes what may be left on the TPM.
        if done.is_ok() {
            self.connection = Some(context);
        }
        done
    }

    fn open(&self) -> tss_esapi::Result<Context> {
        let mut context = Context::new(self.tcti.to_tss()?)?;
        // Nothing here has a password, and an empty one is to be sent.
        context.set_sessions((Some(AuthSession::Password), None, None));
        Ok(context)
    }
}
