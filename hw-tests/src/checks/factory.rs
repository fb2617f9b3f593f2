//! The device maker's key: persistent in the TPM while the suite runs, found and used by the agent.
//! It is exempt from lock-out, so that nothing counts against the TPM should the power go in the
//! middle.

use std::sync::Arc;

use miaf_agent::keys::factory_key::{self, Source};
use rustls::sign::CertifiedKey;
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::key_bits::RsaKeyBits;
use tss_esapi::structures::{Digest, Public};
use x509_parser::prelude::{FromDer, SubjectPublicKeyInfo};

use super::{Outcome, Verdict, ensure};
use crate::Failure;
use crate::bench::Bench;
use crate::connection::{self, AS_THE_AGENT_DOES};
use crate::description;
use crate::handshake::Authority;
use crate::persistent::{HANDLE, INDEX, Stored};

pub(super) fn p256_with_certificate_in_nv(bench: &Bench) -> Outcome {
    let template = connection::p256_key(AS_THE_AGENT_DOES)?;
    let _key = Stored::key(&bench.tcti, template)?;
    let key = factory_key::open(Source::TpmHandle(HANDLE), None, &bench.agent)?;
    let authority = Authority::new()?;
    let leaf = authority.certify(&public_key(&key)?, &rcgen::PKCS_ECDSA_P256_SHA256)?;

    let _certificate = Stored::content(&bench.tcti, &leaf)?;
    let chain = bench.agent.certificates_in_nv(INDEX)?;
    ensure(chain.as_slice() == [leaf], || "another certificate is read than was written".into())?;
    let figure = format!("{HANDLE:#010x}, {INDEX:#010x}, {} in TLS 1.3", key.algorithm);
    authority.meet(CertifiedKey::new(chain, key.signing_key))?;
    Ok(Verdict::Passed(figure))
}

pub(super) fn p384(bench: &Bench) -> Outcome {
    if !description::has_curve(
        &mut connection::open(&bench.tcti)?,
        EccCurve::NistP384,
        HashingAlgorithm::Sha384,
    ) {
        return Ok(Verdict::NotAvailable("the TPM has no P-384 with SHA-384".into()));
    }
    let template = connection::ecc_key(
        AS_THE_AGENT_DOES,
        EccCurve::NistP384,
        HashingAlgorithm::Sha384,
        Digest::default(),
    )?;
    identifies(bench, template, "ecdsa-p384", &rcgen::PKCS_ECDSA_P384_SHA384)
}

pub(super) fn rsa_2048(bench: &Bench) -> Outcome {
    if !description::has_rsa(&mut connection::open(&bench.tcti)?, RsaKeyBits::Rsa2048) {
        return Ok(Verdict::NotAvailable("the TPM has no RSA 2048".into()));
    }
    let template = connection::rsa_key(AS_THE_AGENT_DOES, RsaKeyBits::Rsa2048)?;
    identifies(bench, template, "rsa-2048", &rcgen::PKCS_RSA_SHA256)
}

fn identifies(
    bench: &Bench,
    template: Public,
    algorithm: &str,
    certified_as: &'static rcgen::SignatureAlgorithm,
) -> Outcome {
    let _key = Stored::key(&bench.tcti, template)?;
    let key = factory_key::open(Source::TpmHandle(HANDLE), None, &bench.agent)?;
    ensure(key.algorithm == algorithm, || format!("the agent takes it for {}", key.algorithm))?;
    let authority = Authority::new()?;
    let leaf = authority.certify(&public_key(&key)?, certified_as)?;
    authority.meet(CertifiedKey::new(vec![leaf], Arc::clone(&key.signing_key)))?;
    Ok(Verdict::Passed(format!("{HANDLE:#010x}, {algorithm} in TLS 1.3")))
}

/// What a certificate has as the public key.
fn public_key(key: &factory_key::FactoryKey) -> Result<Vec<u8>, Failure> {
    let spki = key.signing_key.public_key().ok_or("the agent does not know the public half of the key")?;
    let (_, spki) = SubjectPublicKeyInfo::from_der(&spki)?;
    Ok(spki.subject_public_key.data.to_vec())
}
