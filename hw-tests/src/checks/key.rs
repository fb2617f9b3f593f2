//! The agent's key: what the TPM says of it, what it refuses to do with it, and what it is for.

use std::collections::BTreeSet;
use std::sync::Arc;

use miaf_agent::keys::tpm::{TpmError, TpmKey};
use miaf_agent::keys::tss2::Tss2Key;
use miaf_agent::keys::{Key, KeyError, csr, rustls as tls};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls::sign::CertifiedKey;
use tss_esapi::Context;
use tss_esapi::attributes::ObjectAttributes;
use tss_esapi::constants::{CommandCode, SessionType};
use tss_esapi::handles::{KeyHandle, ObjectHandle, SessionHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{
    Digest, EccScheme, HashScheme, Public, SymmetricDefinition, SymmetricDefinitionObject,
};
use x509_parser::prelude::{FromDer, X509CertificationRequest};

use super::{Outcome, Verdict, ensure};
use crate::bench::Bench;
use crate::connection::{self, AS_THE_AGENT_DOES, During, Kind};
use crate::handshake::Authority;
use crate::{Failure, interrupt};

/// What is signed where it does not matter.
pub(crate) const MESSAGE: &[u8] = b"a message";

/// Has the key sign, and checks the signature against its public half.
pub(crate) fn sign_and_verify(key: &TpmKey, message: &[u8]) -> Result<Vec<u8>, Failure> {
    let signature = key.sign(message)?;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.public_key().as_bytes())
        .verify(message, &signature)
        .map_err(|_| "a signature does not fit the public key")?;
    Ok(signature)
}

/// ReadPublic of the loaded key, to the last bit.
pub(super) fn attributes(bench: &Bench) -> Outcome {
    let key = bench.agent.create_key()?;
    let mut context = connection::open(&bench.tcti)?;
    let loaded = connection::load(&mut context, &key.to_pem()?)?;
    let (public, _, _) =
        context.execute_without_session(|context| context.read_public(loaded)).during("ReadPublic")?;

    let (wanted, reported) = (connection::signing_attributes(AS_THE_AGENT_DOES)?, public.object_attributes());
    ensure(reported == wanted, || format!("they are {}, not {}", words(reported), words(wanted)))?;
    ensure(public.auth_policy().value().is_empty(), || "it has a policy".into())?;
    let Public::Ecc { parameters, unique, .. } = &public else { return Err("it is no ECC key".into()) };
    ensure(parameters.ecc_curve() == EccCurve::NistP256, || {
        format!("its curve is {:?}", parameters.ecc_curve())
    })?;
    let scheme = EccScheme::EcDsa(HashScheme::new(HashingAlgorithm::Sha256));
    ensure(parameters.ecc_scheme() == scheme, || format!("its scheme is {:?}", parameters.ecc_scheme()))?;
    ensure(key.public_key().as_bytes().ends_with(unique.y().value()), || {
        "the public key that the agent shows is another one".into()
    })?;
    Ok(Verdict::Passed(format!("{}; P-256, ECDSA with SHA-256", words(reported))))
}

fn words(attributes: ObjectAttributes) -> String {
    let names = [
        (attributes.fixed_tpm(), "fixedTPM"),
        (attributes.st_clear(), "stClear"),
        (attributes.fixed_parent(), "fixedParent"),
        (attributes.sensitive_data_origin(), "sensitiveDataOrigin"),
        (attributes.user_with_auth(), "userWithAuth"),
        (attributes.admin_with_policy(), "adminWithPolicy"),
        (attributes.no_da(), "noDA"),
        (attributes.encrypted_duplication(), "encryptedDuplication"),
        (attributes.restricted(), "restricted"),
        (attributes.decrypt(), "decrypt"),
        (attributes.sign_encrypt(), "sign"),
    ];
    let set: Vec<&str> = names.into_iter().filter_map(|(is_set, name)| is_set.then_some(name)).collect();
    set.join(", ")
}

/// The TPM is asked to duplicate three keys in the same way. One that is made for it shows that the
/// question is right; one that differs from it in fixedTPM and fixedParent only, that these are
/// what it is refused for; the third is the agent's.
pub(super) fn cannot_be_duplicated(bench: &Bench) -> Outcome {
    /// TPM_RC_ATTRIBUTES, for the first handle.
    const ATTRIBUTES: u32 = 0x182;
    let exportable = Kind { fixed: false, ..AS_THE_AGENT_DOES };
    ask_for_duplicate(bench, |context| with_duplication_policy(context, exportable))?.map_err(|code| {
        format!("a key that is made for it is refused too (code {code:#x}): nothing was shown")
    })?;
    let fixed = ask_for_duplicate(bench, |context| with_duplication_policy(context, AS_THE_AGENT_DOES))?;
    ensure(fixed == Err(ATTRIBUTES), || {
        format!("fixedTPM and fixedParent are not what keeps a key in: {}", result(&fixed))
    })?;
    let pem = bench.agent.create_key()?.to_pem()?;
    match ask_for_duplicate(bench, |context| connection::load(context, &pem))? {
        Ok(()) => Err("the TPM gave it out".into()),
        Err(code) => {
            Ok(Verdict::Passed(format!("refused (code {code:#x}); a key that is made for it is not")))
        }
    }
}

fn result(duplicated: &Result<(), u32>) -> String {
    match duplicated {
        Ok(()) => "it was given out".into(),
        Err(code) => format!("code {code:#x}"),
    }
}

/// The TPM's own response to a request to give a key out in the clear: done, or the code of its
/// refusal.
fn ask_for_duplicate(
    bench: &Bench,
    key: impl FnOnce(&mut Context) -> Result<KeyHandle, Failure>,
) -> Result<Result<(), u32>, Failure> {
    let mut context = connection::open(&bench.tcti)?;
    let key = key(&mut context)?;
    let (session, _) = duplication_session(&mut context, SessionType::Policy)?;
    let asked = context.execute_with_session(Some(session), |context| {
        context.duplicate(key.into(), ObjectHandle::Null, None, SymmetricDefinitionObject::Null)
    });
    match asked {
        Ok(_) => Ok(Ok(())),
        Err(error) if (1..0x1000).contains(&connection::code(&error)) => Ok(Err(connection::code(&error))),
        Err(error) => Err(error).during("Duplicate"),
    }
}

/// A key whose policy lets anybody ask for a duplicate.
fn with_duplication_policy(context: &mut Context, kind: Kind) -> Result<KeyHandle, Failure> {
    let (trial, policy) = duplication_session(context, SessionType::Trial)?;
    let trial = PolicySession::try_from(trial).during("PolicyCommandCode")?;
    context.flush_context(SessionHandle::from(trial).into()).during("FlushContext")?;
    let template = connection::ecc_key(kind, EccCurve::NistP256, HashingAlgorithm::Sha256, policy)?;
    let parent = connection::parent(context)?;
    let made = context.create(parent, template, None, None, None, None).during("Create")?;
    context.load(parent, made.out_private, made.out_public).during("Load")
}

/// A session in which Duplicate is what is authorised, and the digest of that policy.
fn duplication_session(context: &mut Context, kind: SessionType) -> Result<(AuthSession, Digest), Failure> {
    context.execute_without_session(|context| {
        let session = context
            .start_auth_session(
                None,
                None,
                None,
                kind,
                SymmetricDefinition::AES_128_CFB,
                HashingAlgorithm::Sha256,
            )
            .during("StartAuthSession")?
            .ok_or("StartAuthSession gave no session")?;
        let policy = PolicySession::try_from(session).during("StartAuthSession")?;
        context.policy_command_code(policy, CommandCode::Duplicate).during("PolicyCommandCode")?;
        let digest = context.policy_get_digest(policy).during("PolicyGetDigest")?;
        Ok((session, digest))
    })
}

/// The same key with another public area, in which it may leave: the TPM notices when it is to load
/// it.
pub(super) fn cannot_be_made_exportable(bench: &Bench) -> Outcome {
    /// fixedTPM and fixedParent in the last byte of TPMA_OBJECT, which follows type and name
    /// algorithm in TPMT_PUBLIC.
    const FIXED: u8 = 0b0001_0010;
    const AT: usize = 7;
    let mut file = Tss2Key::from_pem(&bench.agent.create_key()?.to_pem()?)?;
    let byte = file.public.get_mut(AT).ok_or("the public area is too short")?;
    ensure(*byte & FIXED == FIXED, || "fixedTPM and fixedParent are not set, so cannot be cleared".into())?;
    *byte &= !FIXED;
    let changed = bench.agent.key_from_pem(&file.to_pem()?)?;
    ensure(!changed.attributes().non_exportable(), || "the public area was not changed".into())?;
    match changed.sign(MESSAGE) {
        Err(KeyError::Tpm(TpmError::NotThisTpm { code, .. })) => {
            Ok(Verdict::Passed(format!("refused (code {code:#x}) with fixedTPM and fixedParent cleared")))
        }
        Err(other) => Err(format!("it is refused for another reason: {other}").into()),
        Ok(_) => Err("the TPM has loaded it with fixedTPM and fixedParent cleared".into()),
    }
}

/// Two signatures with the same random number give the private key away, so none may begin alike.
pub(super) fn signs(bench: &Bench) -> Outcome {
    let key = bench.agent.create_key()?;
    let mut seen = BTreeSet::new();
    for round in 0..bench.rounds {
        interrupt::check()?;
        let signature = sign_and_verify(&key, &round.to_be_bytes())?;
        let r = first_integer(&signature).ok_or("a signature is not in DER")?.to_vec();
        ensure(seen.insert(r), || "two signatures were made with the same random number".into())?;
    }
    Ok(Verdict::Passed(format!("{} signatures, all good, all different", seen.len())))
}

/// `r` of `Ecdsa-Sig-Value`: a sequence that begins with it, each with a length of one byte.
fn first_integer(signature: &[u8]) -> Option<&[u8]> {
    let [0x30, _, 0x02, length, rest @ ..] = signature else { return None };
    rest.get(..usize::from(*length))
}

pub(super) fn requests_a_certificate(bench: &Bench) -> Outcome {
    let key = bench.agent.create_key()?;
    let der = csr::certification_request(&key, None)?;
    let (_, request) = X509CertificationRequest::from_der(&der)?;
    request.verify_signature()?;
    ensure(request.certification_request_info.subject_pki.raw == key.public_key().spki_der(), || {
        "the request is for another key".into()
    })?;
    Ok(Verdict::Passed(format!("{} bytes, signature good", der.len())))
}

pub(super) fn identifies(bench: &Bench) -> Outcome {
    let key: Arc<dyn Key> = Arc::new(bench.agent.create_key()?);
    let authority = Authority::new()?;
    let leaf = authority.certify(key.public_key().as_bytes(), &rcgen::PKCS_ECDSA_P256_SHA256)?;
    authority.meet(CertifiedKey::new(vec![leaf], tls::signing_key(key)))?;
    Ok(Verdict::Passed("accepted as a client, ecdsa_secp256r1_sha256".into()))
}
