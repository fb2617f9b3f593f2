//! The `TSS2 PRIVATE KEY` PEM: a key of a TPM on disk.
//!
//! The private half is encrypted by the TPM that made it and is of no use anywhere else. OpenSSL reads the same file
//! through its tpm2 provider.
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
use der::pem::LineEnding;
use der::{
    Decode, DecodeValue, Encode, EncodeValue, FixedTag, Header, Length, Reader, Sequence, Tag, Writer,
};

use super::{KeyError, KeyForm};
use crate::pem;

/// The label of the PEM block.
pub const LABEL: &str = "TSS2 PRIVATE KEY";

/// No key comes near this many bytes: one of RSA-4096 takes 1,500.
const MAX_DER: usize = 6 * 1024;

/// A key as the file has it: the two halves as the TPM wrote them, without their length prefixes.
#[derive(Clone, PartialEq, Eq)]
pub struct Tss2Key {
    /// Under which key it was made.
    pub parent: Parent,
    /// The public area, `TPMT_PUBLIC`.
    pub public: Vec<u8>,
    /// The private area, encrypted by the TPM.
    pub private: Vec<u8>,
}

/// The key under which another one was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parent {
    /// The standard ECC storage primary of the owner hierarchy, derived anew each time.
    OwnerPrimary,
    /// A key kept in the TPM, by its handle (`0x81……`).
    Persistent(u32),
}

impl Tss2Key {
    /// Reads the PEM. Other blocks beside it, such as a certificate, are passed over.
    ///
    /// # Errors
    /// [`KeyError::Malformed`] for what is not a TSS2 PEM or is damaged; [`KeyError::Unsupported`] for a key with a
    /// password or a policy, an importable or sealed object, another parent, and for private keys that are no TPM's.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        match Self::from_pem_with_password(text)? {
            (key, false) => Ok(key),
            (_, true) => Err(unsupported(KeyForm::OtherTss2(
                "with a password (emptyAuth is not TRUE); use one without",
            ))),
        }
    }

    /// As [`Tss2Key::from_pem`], but takes a key with a password too, and tells whether it is one. `tpm2_encodeobject`
    /// says so of every key.
    pub(super) fn from_pem_with_password(text: &str) -> Result<(Self, bool), KeyError> {
        let mut instead = None;
        for block in pem::read(text.as_bytes()).map_err(|why| malformed(why.to_string()))?.blocks {
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
        let internal = |why: der::Error| KeyError::Internal(format!("cannot write a TSS2 PEM: {why}"));
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
            public: OctetStringRef::new(&public).map_err(internal)?,
            private: OctetStringRef::new(&private).map_err(internal)?,
        }
        .to_der()
        .map_err(internal)?;
        der::pem::encode_string(LABEL, LineEnding::LF, &der).map_err(|why| internal(why.into()))
    }

    /// Reads what is in the PEM block, and whether the key has a password.
    pub(super) fn from_der(der: &[u8]) -> Result<(Self, bool), KeyError> {
        if der.len() > MAX_DER {
            return Err(malformed("it is far too large for one"));
        }
        let key = TpmKey::from_der(der).map_err(|why| malformed(format!("ASN.1: {why}")))?;
        match key.kind {
            LOADABLE => {}
            IMPORTABLE => {
                return Err(unsupported(KeyForm::OtherTss2("an importable one; only loadable ones work")));
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

/// A key file that remembers what the TPM calls the parent, in a line before the block.
pub(super) fn with_parent_name(pem: &str, name: &[u8]) -> String {
    let mut text = String::from(PARENT_NAME);
    name.iter().for_each(|byte| text.push_str(&format!("{byte:02x}")));
    text + "\n" + pem
}

/// The name that [`with_parent_name`] wrote. Unknown where there is none.
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

/// The halves are long and say nothing to a reader of logs.
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
    public: OctetStringRef<'a>,
    private: OctetStringRef<'a>,
}

/// A BOOLEAN for which any octet but zero is TRUE: DER wants 0xFF, tpm2-openssl writes 0x01.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LenientBool(bool);

impl FixedTag for LenientBool {
    const TAG: Tag = Tag::Boolean;
}

impl<'a> DecodeValue<'a> for LenientBool {
    fn decode_value<R: Reader<'a>>(reader: &mut R, header: Header) -> der::Result<Self> {
        if header.length != Length::ONE {
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

/// Takes off the length that a `TPM2B` begins with, which must be right.
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

/// Puts the length of a `TPM2B` before its value.
fn with_length(value: &[u8]) -> Result<Vec<u8>, KeyError> {
    let length = u16::try_from(value.len())
        .map_err(|_| KeyError::Internal("half of a TPM key is longer than 65535 octets".into()))?;
    Ok([length.to_be_bytes().as_slice(), value].concat())
}

fn malformed(why: impl Into<String>) -> KeyError {
    KeyError::Malformed { origin: ORIGIN.into(), why: why.into() }
}

fn unsupported(form: KeyForm) -> KeyError {
    KeyError::Unsupported { origin: ORIGIN.into(), form }
}

const ORIGIN: &str = "the file of the TPM key";

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn key() -> Tss2Key {
        Tss2Key { parent: Parent::OwnerPrimary, public: vec![7; 90], private: vec![9; 126] }
    }

    fn der_of(key: &Tss2Key) -> Vec<u8> {
        der::pem::decode_vec(key.to_pem().unwrap().as_bytes()).unwrap().1
    }

    fn pem_of(der: &[u8]) -> String {
        der::pem::encode_string(LABEL, LineEnding::LF, der).unwrap()
    }

    /// `der` with one octet replaced at the first place where `around` is found.
    fn patched(around: &[u8], at: usize, to: u8) -> String {
        let mut der = der_of(&key());
        let start = der.windows(around.len()).position(|window| window == around).unwrap();
        *der.get_mut(start + at).unwrap() = to;
        pem_of(&der)
    }

    #[test]
    fn writes_and_reads_back() {
        for parent in [Parent::OwnerPrimary, Parent::Persistent(0x8100_0001)] {
            let key = Tss2Key { parent, ..key() };
            let pem = key.to_pem().unwrap();
            assert!(pem.starts_with("-----BEGIN TSS2 PRIVATE KEY-----\n"));
            assert_eq!(Tss2Key::from_pem(&pem).unwrap(), key);
            assert_eq!(Tss2Key::from_pem(&pem.replace('\n', "\r\n")).unwrap(), key);
        }
    }

    #[test]
    fn passes_over_what_stands_beside_it() {
        let beside = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let pem = key().to_pem().unwrap();
        assert_eq!(Tss2Key::from_pem(&format!("text\n{beside}{pem}{beside}")).unwrap(), key());
    }

    #[test]
    fn takes_true_as_tpm2_openssl_writes_it() {
        let pem = patched(&[0xa0, 3, 1, 1, 0xff], 4, 1);
        assert_eq!(Tss2Key::from_pem(&pem).unwrap(), key());
    }

    #[test]
    fn names_what_it_does_not_take() {
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
            assert!(matches!(error, KeyError::Unsupported { .. }), "{error:?}");
            assert!(error.to_string().contains(named), "{error}");
        }
    }

    #[test]
    fn refuses_what_is_damaged() {
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
            assert!(matches!(error, KeyError::Malformed { .. }), "{pem}\n{error:?}");
        }
    }

    #[test]
    fn no_octet_can_make_it_panic() {
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
    fn the_name_of_the_parent_stands_before_the_block() {
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
    fn shows_no_blob() {
        assert_eq!(format!("{:?}", key()), "Tss2Key { parent: OwnerPrimary, .. }");
    }
}
