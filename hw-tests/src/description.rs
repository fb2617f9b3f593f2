//! The description of the TPM, as it reports itself.

use tss_esapi::Context;
use tss_esapi::constants::{AlgorithmIdentifier, CapabilityType, PropertyTag};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::key_bits::RsaKeyBits;
use tss_esapi::structures::{
    CapabilityData, EccScheme, HashScheme, PublicEccParametersBuilder, PublicParameters,
    PublicRsaParametersBuilder, RsaExponent, RsaScheme,
};

use crate::Failure;
use crate::bench::Bench;
use crate::connection::{self, property, required};

/// What a lab wants to know of the TPM, in lines of a name and a text.
pub(crate) fn describe(bench: &Bench) -> Result<Vec<(&'static str, String)>, Failure> {
    let mut context = connection::open(&bench.tcti)?;
    let context = &mut context;
    Ok(vec![
        ("TPM", bench.agent.describe()?),
        ("specification", specification(context)?),
        ("algorithms", algorithms(context)),
        ("curves", curves(context)),
        ("RSA sizes", rsa_sizes(context)),
        ("room", room(context)?),
        ("resource manager", if bench.has_resource_manager { "yes" } else { "none" }.into()),
        ("passwords", passwords(context)?),
        ("lock-out", lock_out(context)?),
    ])
}

fn specification(context: &mut Context) -> Result<String, Failure> {
    let family: String = required(context, PropertyTag::FamilyIndicator)?
        .to_be_bytes()
        .into_iter()
        .filter(u8::is_ascii_graphic)
        .map(char::from)
        .collect();
    let revision = required(context, PropertyTag::Revision)?;
    let (day, year) = (required(context, PropertyTag::DayOfYear)?, required(context, PropertyTag::Year)?);
    let level = required(context, PropertyTag::Level)?;
    let (major, minor) = (revision / 100, revision % 100);
    Ok(format!("{family}, level {level}, revision {major}.{minor:02}, of day {day} of {year}"))
}

/// Asked for one by one: a list would be refused whole by the TSS for an entry that it does not
/// know.
fn algorithms(context: &mut Context) -> String {
    use AlgorithmIdentifier::{
        Aes, EcDaa, EcDh, EcDsa, Ecc, Rsa, RsaPss, RsaSsa, Sha1, Sha3_256, Sha256, Sha384, Sha512, Sm2,
    };
    let has: Vec<String> =
        [Rsa, RsaSsa, RsaPss, Ecc, EcDsa, EcDaa, EcDh, Sm2, Aes, Sha1, Sha256, Sha384, Sha512, Sha3_256]
            .into_iter()
            .filter(|algorithm| has_algorithm(context, *algorithm))
            .map(|algorithm| format!("{algorithm:?}"))
            .collect();
    has.join(", ")
}

fn has_algorithm(context: &mut Context, algorithm: AlgorithmIdentifier) -> bool {
    let number = u32::from(u16::from(algorithm));
    let capability = context
        .execute_without_session(|context| context.get_capability(CapabilityType::Algorithms, number, 1));
    matches!(capability, Ok((CapabilityData::Algorithms(list), _))
        if list.find(algorithm).is_some())
}

fn curves(context: &mut Context) -> String {
    let all = [
        ("P-224", EccCurve::NistP224),
        ("P-256", EccCurve::NistP256),
        ("P-384", EccCurve::NistP384),
        ("P-521", EccCurve::NistP521),
        ("BN-256", EccCurve::BnP256),
        ("BN-638", EccCurve::BnP638),
        ("SM2", EccCurve::Sm2P256),
    ];
    listed(
        all.into_iter()
            .filter(|(_, curve)| has_curve(context, *curve, HashingAlgorithm::Sha256))
            .map(|(name, _)| name),
    )
}

fn rsa_sizes(context: &mut Context) -> String {
    let all = [
        ("1024", RsaKeyBits::Rsa1024),
        ("2048", RsaKeyBits::Rsa2048),
        ("3072", RsaKeyBits::Rsa3072),
        ("4096", RsaKeyBits::Rsa4096),
    ];
    listed(all.into_iter().filter(|(_, bits)| has_rsa(context, *bits)).map(|(name, _)| name))
}

fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

/// Whether the TPM has ECDSA keys on the curve, for the hash.
pub(crate) fn has_curve(context: &mut Context, curve: EccCurve, hash: HashingAlgorithm) -> bool {
    let scheme = EccScheme::EcDsa(HashScheme::new(hash));
    let parameters = PublicEccParametersBuilder::new_unrestricted_signing_key(scheme, curve).build();
    parameters.is_ok_and(|parameters| has(context, PublicParameters::Ecc(parameters)))
}

/// Whether the TPM has RSA keys of the size.
pub(crate) fn has_rsa(context: &mut Context, bits: RsaKeyBits) -> bool {
    let parameters = PublicRsaParametersBuilder::new_unrestricted_signing_key(
        RsaScheme::Null,
        bits,
        RsaExponent::default(),
    )
    .build();
    parameters.is_ok_and(|parameters| has(context, PublicParameters::Rsa(parameters)))
}

fn has(context: &mut Context, parameters: PublicParameters) -> bool {
    context.execute_without_session(|context| context.test_parms(parameters)).is_ok()
}

fn room(context: &mut Context) -> Result<String, Failure> {
    let mut count = |tag| -> Result<String, Failure> {
        Ok(property(context, tag)?.map_or_else(|| "?".into(), |value| value.to_string()))
    };
    Ok(format!(
        "{} objects loaded at least, {} free now; {} sessions loaded at least, {} open; {} more persistent keys; {} bytes \
         of NV at a time",
        count(PropertyTag::HrTransientMin)?,
        count(PropertyTag::HrTransientAvail)?,
        count(PropertyTag::HrLoadedMin)?,
        count(PropertyTag::ActiveSessionsMax)?,
        count(PropertyTag::HrPersistentAvail)?,
        count(PropertyTag::NvBufferMax)?,
    ))
}

/// Bits of TPMA_PERMANENT (TPM 2.0 specification, part 2).
const OWNER_AUTH_SET: u32 = 1;
const ENDORSEMENT_AUTH_SET: u32 = 1 << 1;
const LOCKOUT_AUTH_SET: u32 = 1 << 2;
const IN_LOCKOUT: u32 = 1 << 9;

fn passwords(context: &mut Context) -> Result<String, Failure> {
    let permanent = required(context, PropertyTag::Permanent)?;
    let of = |name, bit| format!("{name} {}", if permanent & bit == 0 { "none" } else { "set" });
    Ok([
        of("owner", OWNER_AUTH_SET),
        of("endorsement", ENDORSEMENT_AUTH_SET),
        of("lock-out", LOCKOUT_AUTH_SET),
    ]
    .join(", "))
}

fn lock_out(context: &mut Context) -> Result<String, Failure> {
    let now = LockOut::read(context)?;
    Ok(format!(
        "{} of {} tries used{}; one forgiven every {} s; {} s after a wrong lock-out password",
        now.tries_used,
        now.tries,
        if now.is_locked { ", LOCKED" } else { "" },
        now.interval,
        now.recovery
    ))
}

/// The protection against guessing: how it is set, and where it stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct LockOut {
    pub(crate) tries_used: u32,
    pub(crate) tries: u32,
    pub(crate) interval: u32,
    pub(crate) recovery: u32,
    pub(crate) is_locked: bool,
    pub(crate) has_password: bool,
}

impl LockOut {
    pub(crate) fn read(context: &mut Context) -> Result<Self, Failure> {
        let permanent = required(context, PropertyTag::Permanent)?;
        Ok(Self {
            tries_used: required(context, PropertyTag::LockoutCounter)?,
            tries: required(context, PropertyTag::MaxAuthFail)?,
            interval: required(context, PropertyTag::LockoutInterval)?,
            recovery: required(context, PropertyTag::LockoutRecovery)?,
            is_locked: permanent & IN_LOCKOUT != 0,
            has_password: permanent & LOCKOUT_AUTH_SET != 0,
        })
    }
}
