//! Certificates in NV indices of the TPM, where TCG profiles put those of the device maker: "TPM
//! 2.0 Keys for Device Identity and Attestation" for the IDevID, "EK Credential Profile" for the
//! form (DER).

use rustls::pki_types::CertificateDer;
use tss_esapi::Context;
use tss_esapi::attributes::NvIndexAttributes;
use tss_esapi::constants::{NvIndexType, PropertyTag};
use tss_esapi::handles::{NvIndexHandle, NvIndexTpmHandle, TpmHandle};
use tss_esapi::interface_types::resource_handles::NvAuth;
use tss_esapi::structures::MaxNvBuffer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::error::NvLock;
use super::lockout_guard::AuthAttempt;
use super::parent::Storage;
use super::response_code::{During, Failure, NvProblem, Step};

/// Reads the certificates in an NV index.
pub(super) fn certificates(
    context: &mut Context,
    index: u32,
    storage: &Storage,
) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let step = Step::Nv(index);
    let handle = NvIndexTpmHandle::new(index).during(step)?;
    let mut handle = context
        .execute_without_session(|context| context.tr_from_tpm_public(TpmHandle::NvIndex(handle)))
        .during(step)?;
    let read = content(context, handle.into(), index, storage);
    let closed = context.tr_close(&mut handle).during(Step::Release);
    let content = read?;
    closed?;
    split(&content).map_err(|why| Failure::Nv(index, NvProblem::Content(why)))
}

/// Bytes; a larger index holds something else.
const MAX_SIZE: usize = 16 * 1024;
/// No chain is longer.
const MAX_CERTIFICATES: usize = 8;

fn content(
    context: &mut Context,
    handle: NvIndexHandle,
    index: u32,
    storage: &Storage,
) -> Result<Vec<u8>, Failure> {
    let problem = |problem| Failure::Nv(index, problem);
    let (public, name) =
        context.execute_without_session(|context| context.nv_read_public(handle)).during(Step::Nv(index))?;
    let attributes = public.attributes();
    if !matches!(attributes.index_type(), Ok(NvIndexType::Ordinary)) {
        return Err(problem(NvProblem::Content("it is a counter or the like, not one for data".into())));
    }
    if !attributes.written() {
        return Err(problem(NvProblem::Unwritten));
    }
    if attributes.read_locked() {
        return Err(problem(NvProblem::Locked(NvLock::UntilRestart)));
    }
    let size = public.data_size();
    if size > MAX_SIZE {
        let why = format!("it is {size} bytes large, and at most {MAX_SIZE} are read");
        return Err(problem(NvProblem::Content(why)));
    }
    // As the owner first: a wrong owner password does not count towards lock-out, one of an index
    // does.
    let by_owner = attributes.owner_read().then(|| {
        storage
            .as_owner(context, Step::Nv(index), |context| read(context, NvAuth::Owner, handle, index, size))
    });
    match by_owner {
        Some(Ok(content)) => Ok(content),
        Some(Err(failure)) if !failure.is_about_a_password() => Err(failure),
        _ if attributes.auth_read() => {
            let empty = AuthAttempt::new(name.value(), &[]);
            storage.lockout_guard.run(&empty, || read(context, NvAuth::NvIndex(handle), handle, index, size))
        }
        Some(Err(_)) => Err(problem(NvProblem::Locked(NvLock::OwnerPassword))),
        None => Err(problem(NvProblem::Locked(lock_of(attributes)))),
    }
}

fn lock_of(attributes: NvIndexAttributes) -> NvLock {
    if attributes.policy_read() { NvLock::Policy } else { NvLock::Platform }
}

/// Reads in pieces, as large as the TPM allows. Some do not say how large, or say more than they
/// allow, so the pieces become smaller until it works.
fn read(
    context: &mut Context,
    auth: NvAuth,
    handle: NvIndexHandle,
    index: u32,
    size: usize,
) -> Result<Vec<u8>, Failure> {
    let step = Step::Nv(index);
    let mut most = largest_piece(context)?;
    let mut content = Vec::with_capacity(size);
    while content.len() < size {
        let length = most.min(size - content.len());
        // Both are at most 16 KiB.
        let (Ok(count), Ok(offset)) = (u16::try_from(length), u16::try_from(content.len())) else { break };
        match context.nv_read(auth, handle, count, offset).during(step) {
            Ok(piece) => {
                let piece = piece.value();
                if piece.is_empty() || piece.len() > length {
                    let why = format!("it returns {} bytes of an NV index, of {length}", piece.len());
                    return Err(Failure::Deviant(why));
                }
                most = piece.len();
                content.extend_from_slice(piece);
            }
            Err(failure) if length > SMALLEST && failure.is_about_the_request() => most = smaller(length),
            Err(failure) => return Err(failure),
        }
    }
    Ok(content)
}

/// The largest piece that the TPM says it returns, in bytes; what every TPM should, if it does not
/// say it.
fn largest_piece(context: &mut Context) -> Result<usize, Failure> {
    let stated = match context.get_tpm_property(PropertyTag::NvBufferMax).during(Step::Describe) {
        Ok(stated) => stated,
        Err(failure) if failure.is_about_the_request() => None,
        Err(failure) => return Err(failure),
    };
    let stated = stated.and_then(|size| usize::try_from(size).ok()).filter(|size| *size >= SMALLEST);
    Ok(stated.unwrap_or(USUAL).min(MaxNvBuffer::MAX_SIZE))
}

/// Bytes that most TPMs return at a time, at least.
const USUAL: usize = 512;
/// Bytes that no TPM refuses to return at a time.
const SMALLEST: usize = 16;

/// The next smaller power of two.
fn smaller(length: usize) -> usize {
    (1 << (length.saturating_sub(1).max(1)).ilog2()).max(SMALLEST)
}

/// Splits certificates that are stored one after the other, up to the end or the padding of the
/// index.
fn split(content: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut certificates = Vec::new();
    let mut rest = content;
    while !rest.iter().all(|byte| matches!(byte, 0 | 0xff)) {
        if certificates.len() == MAX_CERTIFICATES {
            return Err(format!("it holds more than {MAX_CERTIFICATES} certificates"));
        }
        let at = content.len() - rest.len();
        let (after, _) = X509Certificate::from_der(rest)
            .map_err(|_| format!("what begins at byte {at} is not a certificate"))?;
        let length = rest.len() - after.len();
        certificates.extend(rest.get(..length).map(|der| CertificateDer::from(der.to_vec())));
        rest = after;
    }
    if certificates.is_empty() {
        return Err("it is empty".into());
    }
    Ok(certificates)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn certificate() -> Vec<u8> {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["factory.example".into()]).unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn certificates_are_read_up_to_the_padding() {
        let (one, other) = (certificate(), certificate());
        for padding in [&[] as &[u8], &[0; 100], &[0xff; 100], &[0, 0xff, 0xff]] {
            let expected = [CertificateDer::from(one.clone()), CertificateDer::from(other.clone())];
            assert_eq!(split(&[&one, &other, padding].concat()).unwrap(), expected);
            assert_eq!(split(&[&one, padding].concat()).unwrap(), expected[..1]);
        }
        assert_eq!(split(&one.repeat(MAX_CERTIFICATES)).unwrap().len(), MAX_CERTIFICATES);
    }

    #[test]
    fn pieces_become_smaller_down_to_the_smallest() {
        let mut length = 1300;
        let mut seen = Vec::new();
        while length > SMALLEST {
            length = smaller(length);
            seen.push(length);
        }
        assert_eq!(seen, [1024, 512, 256, 128, 64, 32, 16]);
        assert_eq!((smaller(0), smaller(17)), (16, 16));
    }

    #[test]
    fn nv_content_that_is_no_certificate_is_refused() {
        let one = certificate();
        let cut = one.get(..one.len() - 1).unwrap().to_vec();
        let bad = [
            Vec::new(),
            vec![0; 100],
            vec![0xff; 100],
            b"-----BEGIN CERTIFICATE-----".to_vec(),
            cut.clone(),
            [one.as_slice(), &cut].concat(),
            [one.as_slice(), b"\n"].concat(),
            [&[0], one.as_slice()].concat(),
            [one.as_slice(), &[0], &one].concat(),
            one.repeat(MAX_CERTIFICATES + 1),
        ];
        for content in bad {
            assert!(split(&content).is_err(), "{content:02x?}");
        }
    }
}
