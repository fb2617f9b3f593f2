//! Certificates in the TPM's own memory, where TCG profiles put those of the device maker: "TPM 2.0 Keys for Device
//! Identity and Attestation" for the IDevID, "EK Credential Profile" for the form (DER).

use rustls::pki_types::CertificateDer;
use tss_esapi::Context;
use tss_esapi::attributes::NvIndexAttributes;
use tss_esapi::constants::{NvIndexType, PropertyTag};
use tss_esapi::handles::{NvIndexHandle, NvIndexTpmHandle, TpmHandle};
use tss_esapi::interface_types::resource_handles::NvAuth;
use tss_esapi::structures::MaxNvBuffer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::failure::{During, Failure, NvTrouble, Step};
use super::guard::Pair;
use super::parent::Storage;

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
    split(&content).map_err(|why| Failure::Nv(index, NvTrouble::Content(why)))
}

/// An index larger than this holds something else.
const MAX_SIZE: usize = 16 * 1024;
/// No chain is longer.
const MAX_CERTIFICATES: usize = 8;

fn content(
    context: &mut Context,
    handle: NvIndexHandle,
    index: u32,
    storage: &Storage,
) -> Result<Vec<u8>, Failure> {
    let trouble = |trouble| Failure::Nv(index, trouble);
    let (public, name) =
        context.execute_without_session(|context| context.nv_read_public(handle)).during(Step::Nv(index))?;
    let attributes = public.attributes();
    if !matches!(attributes.index_type(), Ok(NvIndexType::Ordinary)) {
        return Err(trouble(NvTrouble::Content("it is a counter or the like, not one for data".into())));
    }
    if !attributes.written() {
        return Err(trouble(NvTrouble::Unwritten));
    }
    if attributes.read_locked() {
        return Err(trouble(NvTrouble::Locked(UNTIL_RESTART)));
    }
    let size = public.data_size();
    if size > MAX_SIZE {
        let why = format!("it is {size} octets large, and {MAX_SIZE} is the most that is taken");
        return Err(trouble(NvTrouble::Content(why)));
    }
    // The owner first: a wrong password of the owner does not count towards lock-out, one of an index does.
    let by_owner = attributes.owner_read().then(|| {
        storage
            .as_owner(context, Step::Nv(index), |context| read(context, NvAuth::Owner, handle, index, size))
    });
    match by_owner {
        Some(Ok(content)) => Ok(content),
        Some(Err(failure)) if !failure.is_about_a_password() => Err(failure),
        _ if attributes.auth_read() => {
            let empty = Pair::new(name.value(), &[]);
            storage.refusals.guard(&empty, || read(context, NvAuth::NvIndex(handle), handle, index, size))
        }
        Some(Err(_)) => Err(trouble(NvTrouble::Locked(OWNER_PASSWORD))),
        None => Err(trouble(NvTrouble::Locked(what_it_takes(attributes)))),
    }
}

const UNTIL_RESTART: &str =
    "another program (tpm2_nvreadlock) has locked it against reading until the TPM restarts";

const OWNER_PASSWORD: &str = "the owner may read it, and the TPM has an owner password; empty it (tpm2_changeauth -c owner \
                              -p OLDPASSWORD), define the index with authread, or keep the certificate in a file";

fn what_it_takes(attributes: NvIndexAttributes) -> &'static str {
    if attributes.policy_read() {
        "it is read under a policy, which the agent does not support; define it with ownerread or authread, or keep the \
         certificate in a file"
    } else {
        "only the platform (the firmware) may read it; define it with ownerread or authread, or keep the certificate in \
         a file"
    }
}

/// Reads in pieces: a TPM gives out so much at a time. Some do not say how much, or say more than they do, so that the
/// pieces become smaller until it works.
fn read(
    context: &mut Context,
    auth: NvAuth,
    handle: NvIndexHandle,
    index: u32,
    size: usize,
) -> Result<Vec<u8>, Failure> {
    let step = Step::Nv(index);
    let mut most = most_at_a_time(context)?;
    let mut content = Vec::with_capacity(size);
    while content.len() < size {
        let length = most.min(size - content.len());
        // Both are at most 16 KiB.
        let (Ok(count), Ok(offset)) = (u16::try_from(length), u16::try_from(content.len())) else { break };
        match context.nv_read(auth, handle, count, offset).during(step) {
            Ok(piece) => {
                let piece = piece.value();
                if piece.is_empty() || piece.len() > length {
                    let why = format!("it gives back {} bytes of an NV index, of {length}", piece.len());
                    return Err(Failure::Deviant(why));
                }
                most = piece.len();
                content.extend_from_slice(piece);
            }
            Err(failure) if length > LEAST && failure.is_about_the_request() => most = smaller(length),
            Err(failure) => return Err(failure),
        }
    }
    Ok(content)
}

/// What the TPM says that it gives out at a time, in bytes; what every TPM should, if it does not say it.
fn most_at_a_time(context: &mut Context) -> Result<usize, Failure> {
    let told = match context.get_tpm_property(PropertyTag::NvBufferMax).during(Step::Describe) {
        Ok(told) => told,
        Err(failure) if failure.is_about_the_request() => None,
        Err(failure) => return Err(failure),
    };
    let told = told.and_then(|told| usize::try_from(told).ok()).filter(|told| *told >= LEAST);
    Ok(told.unwrap_or(USUAL).min(MaxNvBuffer::MAX_SIZE))
}

/// What most TPMs give out at a time, at least.
const USUAL: usize = 512;
/// Fewer bytes than this no TPM refuses to give out.
const LEAST: usize = 16;

/// The next smaller power of two.
fn smaller(length: usize) -> usize {
    (1 << (length.saturating_sub(1).max(1)).ilog2()).max(LEAST)
}

/// One certificate after the other, and then nothing, or what an index is filled up with.
fn split(content: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut certificates = Vec::new();
    let mut rest = content;
    while !rest.iter().all(|octet| matches!(octet, 0 | 0xff)) {
        if certificates.len() == MAX_CERTIFICATES {
            return Err(format!("it holds more than {MAX_CERTIFICATES} certificates"));
        }
        let at = content.len() - rest.len();
        let (after, _) = X509Certificate::from_der(rest)
            .map_err(|_| format!("what begins at octet {at} is not a certificate"))?;
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
    fn takes_certificates_and_what_fills_the_index_up() {
        let (one, other) = (certificate(), certificate());
        for padding in [&[] as &[u8], &[0; 100], &[0xff; 100], &[0, 0xff, 0xff]] {
            let expected = [CertificateDer::from(one.clone()), CertificateDer::from(other.clone())];
            assert_eq!(split(&[&one, &other, padding].concat()).unwrap(), expected);
            assert_eq!(split(&[&one, padding].concat()).unwrap(), expected[..1]);
        }
        assert_eq!(split(&one.repeat(MAX_CERTIFICATES)).unwrap().len(), MAX_CERTIFICATES);
    }

    #[test]
    fn pieces_become_smaller_until_the_least() {
        let mut length = 1300;
        let mut seen = Vec::new();
        while length > LEAST {
            length = smaller(length);
            seen.push(length);
        }
        assert_eq!(seen, [1024, 512, 256, 128, 64, 32, 16]);
        assert_eq!((smaller(0), smaller(17)), (16, 16));
    }

    #[test]
    fn refuses_what_is_something_else() {
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
