//! The `TSS2 PRIVATE KEY` PEM: a key of a TPM on disk.
//!
//! The private half is encrypted by the TPM that created it, and useless anywhere else. OpenSSL
//! reads the same file through its tpm2 provider.
//!
//! ```text
//! TPMKey ::= SEQUENCE {
//!     type        OBJECT IDENTIFIER,              -- 2.23.133.10.1.3, a loadable key
//!     emptyAuth   [0] EXPLICIT BOOLEAN OPTIONAL,  -- TRUE: no password
//!     policy      [1] … secret [2] … authPolicy [3] … description [4] … rsaParent [5] … OPTIONAL,
//!     parent      INTEGER,                        -- 0x40000001: the owner's storage primary; or a persistent handle
//!     pubkey      OCTET STRING,                   -- TPM2B_PUBLIC
//!     privkey     OCTET STRING }                  -- TPM2B_PRIVATE
//! ```

use der::asn1::{AnyRef, ObjectIdentifier, OctetStringRef};
use der::{
    Decode, DecodeValue, Encode, EncodeValue, FixedTag, Header, Length, Reader, Sequence, Tag, Writer,
};

use super::{KeyError, KeyFileError, KeyForm};
use crate::hint::Reason;
use miaf_spiffe::digest::Hex;
use miaf_spiffe::pem;

/// The label of the PEM block.
pub const LABEL: &str = "TSS2 PRIVATE KEY";

/// Bytes; the largest key, of RSA-4096, takes 1,500.
const MAX_DER: usize = 6 * 1024;

/// The content of the file: the two halves as the TPM returned them, without their length prefixes.
#[derive(Clone, PartialEq, Eq)]
pub struct Tss2Key {
    /// The key that it was created under.
    pub parent: Parent,
    /// The public area, `TPMT_PUBLIC`.
    pub public: Vec<u8>,
    /// The private area, encrypted by the TPM.
    pub private: Vec<u8>,
}

/// The key under which another one was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parent {
    /// The standard ECC storage primary of the owner hierarchy, derived each time.
    OwnerPrimary,
    /// A key kept in the TPM, by its handle (`0x81……`).
    Persistent(u32),
}

impl Tss2Key {
    /// Parses the PEM. Other blocks, such as a certificate, are ignored.
    ///
    /// # Errors
    /// [`KeyFileError::Malformed`] for what is not a TSS2 PEM or is damaged;
    /// [`KeyFileError::Unsupported`] for a key with a password or a policy, an importable or sealed
    /// object, another parent, and for private keys that are no TPM's.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        match Self::from_pem_with_password(text)? {
            (key, false) => Ok(key),
            (_, true) => Err(unsupported(KeyForm::OtherTss2(
                "with a password (emptyAuth is not TRUE); only keys without one are supported",
            ))),
        }
    }

    /// As [`Tss2Key::from_pem`], but accepts a key with a password too, and returns whether the
    /// file says that it has one. `tpm2_encodeobject` says so of every key.
    pub(super) fn from_pem_with_password(text: &str) -> Result<(Self, bool), KeyError> {
        let mut instead = None;
        for block in pem::read(text.as_bytes()).map_err(|why| KeyFileError::not_pem(ORIGIN, &why))?.blocks {
            match &*block.label {
                LABEL => return Self::from_der(&block.der),
                label if label.ends_with("PRIVATE KEY") => instead = Some(KeyForm::Plain),
                _ if instead.is_none() => instead = Some(KeyForm::Other(block.label.to_string())),
                _ => {}
            }
        }
        Err(instead.map_or_else(|| malformed("it has no PEM block"), unsupported))
    }

    /// Writes the PEM.
    ///
    /// # Errors
    /// [`KeyError::Internal`] for halves that are too large to be those of a key.
    pub fn to_pem(&self) -> Result<String, KeyError> {
        let internal = || KeyError::Internal("a TSS2 PEM cannot be encoded".into());
        let (public, private) = (with_length(&self.public)?, with_length(&self.private)?);
        let der = TpmKey {
            kind: LOADABLE,
            empty_auth: Some(LenientBool(true)),
            policy: None,
            secret: None,
            auth_policy: None,
            description: None,
            rsa_parent: None,
            parent: self.parent.handle(),
            public: OctetStringRef::new(&public).map_err(|_| internal())?,
            private: OctetStringRef::new(&private).map_err(|_| internal())?,
        }
        .to_der()
        .map_err(|_| internal())?;
        pem::encode(LABEL, &der).map(|pem| pem.to_string()).ok_or_else(internal)
    }

    /// Parses the content of the PEM block. Returns, in addition, whether it says that the key has
    /// a password.
    pub(super) fn from_der(der: &[u8]) -> Result<(Self, bool), KeyError> {
        if der.len() > MAX_DER {
            return Err(malformed("it is far too large for one"));
        }
        let key =
            TpmKey::from_der(der).map_err(|_| malformed("its ASN.1 is not that of a TSS2 PRIVATE KEY"))?;
        match key.kind {
            LOADABLE => {}
            IMPORTABLE => {
                return Err(unsupported(KeyForm::OtherTss2(
                    "an importable one; only loadable ones are supported",
                )));
            }
            SEALED => return Err(unsupported(KeyForm::OtherTss2("of sealed data, which cannot sign"))),
            other => return Err(malformed(format!("unknown type {other}"))),
        }
        if key.policy.is_some() || key.secret.is_some() || key.auth_policy.is_some() {
            return Err(unsupported(KeyForm::OtherTss2(
                "its use is bound to a policy, which is not supported",
            )));
        }
        if key.rsa_parent == Some(LenientBool(true)) {
            return Err(unsupported(KeyForm::OtherTss2(
                "made under an RSA parent; only the ECC one is supported",
            )));
        }
        let has_password = key.empty_auth != Some(LenientBool(true));
        let key = Self {
            parent: Parent::from_handle(key.parent)?,
            public: without_length(key.public.as_bytes())?.to_vec(),
            private: without_length(key.private.as_bytes())?.to_vec(),
        };
        Ok((key, has_password))
    }
}

/// A key file with the name of the parent in the TPM, in a line before the block.
pub(super) fn with_parent_name(pem: &str, name: &[u8]) -> String {
    format!("{PARENT_NAME}{}\n{pem}", Hex(name))
}

/// The name that [`with_parent_name`] wrote, if there is one.
pub(super) fn parent_name(text: &str) -> Option<Vec<u8>> {
    let hex = text.lines().find_map(|line| line.strip_prefix(PARENT_NAME))?.as_bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let byte = |pair: &[u8]| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    };
    // An algorithm and its digest: SHA-512 is the longest.
    (hex.len() <= 2 * (2 + 64)).then(|| hex.chunks(2).map(byte).collect())?
}

const PARENT_NAME: &str = "Parent-Name: ";

/// Without the halves, which are long and mean nothing in a log.
impl std::fmt::Debug for Tss2Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tss2Key").field("parent", &self.parent).finish_non_exhaustive()
    }
}

impl std::fmt::Display for Parent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OwnerPrimary => f.write_str("the owner's primary"),
            Self::Persistent(handle) => write!(f, "{handle:#010x}"),
        }
    }
}

impl Parent {
    /// The handle as it stands in the file.
    #[must_use]
    pub fn handle(self) -> u32 {
        match self {
            Self::OwnerPrimary => OWNER,
            Self::Persistent(handle) => handle,
        }
    }

    fn from_handle(handle: u32) -> Result<Self, KeyError> {
        match handle {
            OWNER => Ok(Self::OwnerPrimary),
            0x8100_0000..=0x81ff_ffff => Ok(Self::Persistent(handle)),
            _ => Err(unsupported(KeyForm::OtherTss2(
                "under a parent that is neither the owner's primary (0x40000001) nor a persistent key (0x81……)",
            ))),
        }
    }
}

/// `TPM_RH_OWNER`.
const OWNER: u32 = 0x4000_0001;

const LOADABLE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.10.1.3");
const IMPORTABLE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.10.1.4");
const SEALED: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.10.1.5");

#[derive(Sequence)]
struct TpmKey<'a> {
    kind: ObjectIdentifier,
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT", optional = "true")]
    empty_auth: Option<LenientBool>,
    #[asn1(context_specific = "1", tag_mode = "EXPLICIT", optional = "true")]
    policy: Option<AnyRef<'a>>,
    #[asn1(context_specific = "2", tag_mode = "EXPLICIT", optional = "true")]
    secret: Option<AnyRef<'a>>,
    #[asn1(context_specific = "3", tag_mode = "EXPLICIT", optional = "true")]
    auth_policy: Option<AnyRef<'a>>,
    #[asn1(context_specific = "4", tag_mode = "EXPLICIT", optional = "true")]
    description: Option<AnyRef<'a>>,
    #[asn1(context_specific = "5", tag_mode = "EXPLICIT", optional = "true")]
    rsa_parent: Option<LenientBool>,
    parent: u32,
    public: &'a OctetStringRef,
    private: &'a OctetStringRef,
}

/// A BOOLEAN for which any byte but zero is TRUE: DER demands 0xFF, tpm2-openssl writes 0x01.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LenientBool(bool);

impl FixedTag for LenientBool {
    const TAG: Tag = Tag::Boolean;
}

impl<'a> DecodeValue<'a> for LenientBool {
    type Error = der::Error;

    fn decode_value<R: Reader<'a>>(reader: &mut R, header: Header) -> der::Result<Self> {
        if header.length() != Length::ONE {
            return Err(reader.error(der::ErrorKind::Length { tag: Self::TAG }));
        }
        Ok(Self(reader.read_byte()? != 0))
    }
}

impl EncodeValue for LenientBool {
    fn value_len(&self) -> der::Result<Length> {
        Ok(Length::ONE)
    }

    fn encode_value(&self, writer: &mut impl Writer) -> der::Result<()> {
        writer.write_byte(if self.0 { 0xff } else { 0 })
    }
}

/// Removes the length that a `TPM2B` begins with, which must be right.
fn without_length(tpm2b: &[u8]) -> Result<&[u8], KeyError> {
    match tpm2b.split_first_chunk::<2>() {
        Some((length, value))
            if !value.is_empty() && usize::from(u16::from_be_bytes(*length)) == value.len() =>
        {
            Ok(value)
        }
        _ => Err(malformed("a half of the key has a wrong length")),
    }
}

/// Prepends the length of a `TPM2B` to its value.
fn with_length(value: &[u8]) -> Result<Vec<u8>, KeyError> {
    let length = u16::try_from(value.len())
        .map_err(|_| KeyError::Internal("half of a TPM key is longer than 65535 bytes".into()))?;
    Ok([length.to_be_bytes().as_slice(), value].concat())
}

fn malformed(why: impl Into<Reason>) -> KeyError {
    KeyFileError::malformed(ORIGIN, why)
}

fn unsupported(form: KeyForm) -> KeyError {
    KeyFileError::unsupported(ORIGIN, form)
}

/// The name of such a file in errors, where it has no other.
pub(super) const ORIGIN: &str = "the file of the TPM key";

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn key() -> Tss2Key {
        Tss2Key { parent: Parent::OwnerPrimary, public: vec![7; 90], private: vec![9; 126] }
    }

    fn der_of(key: &Tss2Key) -> Vec<u8> {
        pem::read(key.to_pem().unwrap().as_bytes()).unwrap().blocks[0].der.to_vec()
    }

    fn pem_of(der: &[u8]) -> String {
        pem::encode(LABEL, der).unwrap().to_string()
    }

    /// `der` with one byte replaced at the first position of `around`.
    fn patched(around: &[u8], at: usize, to: u8) -> String {
        let mut der = der_of(&key());
        let start = der.windows(around.len()).position(|window| window == around).unwrap();
        *der.get_mut(start + at).unwrap() = to;
        pem_of(&der)
    }

    #[test]
    fn tss2_pem_is_parsed_as_it_was_written() {
        for parent in [Parent::OwnerPrimary, Parent::Persistent(0x8100_0001)] {
            let key = Tss2Key { parent, ..key() };
            let pem = key.to_pem().unwrap();
            assert!(pem.starts_with("-----BEGIN TSS2 PRIVATE KEY-----\n"));
            assert_eq!(Tss2Key::from_pem(&pem).unwrap(), key);
            assert_eq!(Tss2Key::from_pem(&pem.replace('\n', "\r\n")).unwrap(), key);
        }
    }

    #[test]
    fn tss2_pem_may_have_other_blocks_around_it() {
        let other = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let pem = key().to_pem().unwrap();
        assert_eq!(Tss2Key::from_pem(&format!("text\n{other}{pem}{other}")).unwrap(), key());
    }

    #[test]
    fn tss2_boolean_true_of_tpm2_openssl_is_accepted() {
        let pem = patched(&[0xa0, 3, 1, 1, 0xff], 4, 1);
        assert_eq!(Tss2Key::from_pem(&pem).unwrap(), key());
    }

    #[test]
    fn tss2_forms_that_are_not_supported_are_named() {
        let oid_end = [0x81, 5, 0x0a, 1, 3];
        let cases = [
            (patched(&[0xa0, 3, 1, 1, 0xff], 4, 0), "password"),
            (patched(&oid_end, 4, 4), "importable"),
            (patched(&oid_end, 4, 5), "sealed"),
            (patched(&[0xa0, 3, 1, 1, 0xff], 0, 0xa1), "policy"),
            (patched(&[2, 4, 0x40, 0, 0, 1], 5, 7), "parent"),
            ("-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n".into(), "in a file"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into(), "CERTIFICATE"),
        ];
        for (pem, named) in cases {
            let error = Tss2Key::from_pem(&pem).unwrap_err();
            assert!(matches!(error, KeyError::File(KeyFileError::Unsupported { .. })), "{error:?}");
            assert!(error.to_string().contains(named), "{error}");
        }
    }

    #[test]
    fn tss2_pem_that_is_damaged_is_refused() {
        let good = key().to_pem().unwrap();
        let der = der_of(&key());
        let long = Tss2Key { private: vec![1; 30_000], ..key() };
        let bad = [
            String::new(),
            "not a key".into(),
            good.replace("END", "FIN"),
            good.chars().take(good.len() / 2).collect(),
            good.replacen('M', "!", 1),
            pem_of(&[]),
            pem_of(&[der.as_slice(), &[0]].concat()),
            patched(&[0xa0, 3, 1, 1, 0xff], 3, 0),
            patched(&[4, 92, 0, 90], 3, 89),
            patched(&[4, 92, 0, 90], 3, 91),
            patched(&[0x81, 5, 0x0a, 1, 3], 4, 9),
            long.to_pem().unwrap(),
        ];
        for pem in bad {
            let error = Tss2Key::from_pem(&pem).unwrap_err();
            assert!(matches!(error, KeyError::File(KeyFileError::Malformed { .. })), "{pem}\n{error:?}");
        }
    }

    #[test]
    fn tss2_with_any_byte_changed_does_not_panic() {
        let der = der_of(&key());
        for at in 0..der.len() {
            for to in [0, 1, 0x7f, 0x80, 0xff] {
                let mut changed = der.clone();
                *changed.get_mut(at).unwrap() = to;
                let _ = Tss2Key::from_der(&changed);
                let _ = Tss2Key::from_der(changed.get(..at).unwrap());
            }
        }
    }

    #[test]
    fn parent_name_is_stored_before_the_block() {
        let key = Tss2Key { parent: Parent::Persistent(0x8100_0001), ..key() };
        let bare = key.to_pem().unwrap();
        let named = with_parent_name(&bare, &[0, 0x0b, 0xff, 0x10]);
        assert_eq!(parent_name(&named).unwrap(), [0, 0x0b, 0xff, 0x10]);
        assert_eq!(Tss2Key::from_pem(&named).unwrap(), key);
        assert_eq!(parent_name(&bare), None);
        for bad in ["0", "0g", "000", &"00".repeat(67)] {
            assert_eq!(parent_name(&format!("{PARENT_NAME}{bad}\n{bare}")), None, "{bad}");
        }
    }

    #[test]
    fn tss2_debug_shows_no_half_of_the_key() {
        assert_eq!(format!("{:?}", key()), "Tss2Key { parent: OwnerPrimary, .. }");
    }
}
