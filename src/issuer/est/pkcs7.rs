//! Reader of the certificates in a response of an EST server: the base64 of a certs-only PKCS#7
//! message (RFC 7030 section 4.1.3, RFC 8951 section 3.1), in DER or in BER.
//!
//! What the structure is for, signing and encrypting, is not used here: of the outer levels only
//! their shape matters, and each certificate is a slice of the response, to be parsed by those who
//! use it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use x509_parser::asn1_rs::{Any, Class, FromBer as _, Tag};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use miaf_spiffe::text::Excerpt;

/// The media type of a certs-only message.
pub(super) const MEDIA_TYPE: &str = "application/pkcs7-mime";

/// Limit on the elements of a message whose kind is looked at: more than fit into the largest
/// response if each is a certificate.
const MAX_ELEMENTS: usize = 2048;
/// Limit on the characters of what was found instead.
const MAX_FOUND: usize = 80;

/// signedData (RFC 5652 section 5.1), 1.2.840.113549.1.7.2.
const SIGNED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 2];
/// The arc of all content types of PKCS#7.
const PKCS7: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7];

/// Why a body is no certs-only message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BodyError {
    #[error("it has no Content-Type, and {MEDIA_TYPE} is expected")]
    NoMediaType,
    #[error("its Content-Type is \"{0}\", and {MEDIA_TYPE} is expected")]
    OtherMediaType(Excerpt),
    #[error("its body is empty")]
    Empty,
    #[error("its body is a web page, and no base64")]
    WebPage,
    #[error("its body is PEM (-----BEGIN), and EST has the base64 alone")]
    Pem,
    #[error("its body is binary (raw DER), and EST has its base64")]
    RawDer,
    #[error("its body is base64 of the URL alphabet (\"-\" and \"_\"), and EST has the standard one")]
    UrlAlphabet,
    #[error("the padding (\"=\") of its base64 is missing, or something follows it")]
    Padding,
    #[error("its body is no base64: it has the character {0}")]
    OtherCharacter(Excerpt),
    #[error("its body is no base64: its last character has bits that mean nothing")]
    TrailingBits,
    #[error("it is a bare certificate, and not one in a PKCS#7 message")]
    BareCertificate,
    #[error("it is a PKCS#7 message of another kind than SignedData")]
    NotSignedData,
    #[error("what its base64 encodes is no PKCS#7 message: {0}")]
    NotPkcs7(&'static str),
    #[error("bytes follow its PKCS#7 message")]
    TrailingBytes,
    #[error("its PKCS#7 message has no certificates")]
    NoCertificates,
}

/// Checks the value of a `Content-Type`: parameters, blanks and case play no part.
pub(super) fn check_media_type(content_type: Option<&str>) -> Result<(), BodyError> {
    let given = content_type.ok_or(BodyError::NoMediaType)?;
    let media_type = given.split(';').next().unwrap_or_default().trim();
    if media_type.eq_ignore_ascii_case(MEDIA_TYPE) {
        return Ok(());
    }
    Err(BodyError::OtherMediaType(Excerpt::of(media_type, MAX_FOUND)))
}

/// Decodes the base64 of a body: the standard alphabet with padding, and between its characters CR,
/// LF, tabs and spaces (RFC 4648 section 4, RFC 8951 section 3.1). The body is bounded by its
/// reader.
pub(super) fn decode(body: &[u8]) -> Result<Vec<u8>, BodyError> {
    let text = body.trim_ascii();
    match text {
        [] => return Err(BodyError::Empty),
        [b'<', ..] | [0xef, 0xbb, 0xbf, b'<', ..] => return Err(BodyError::WebPage),
        [b'-', b'-', b'-', ..] => return Err(BodyError::Pem),
        [0x30, 0x80..=0x84, ..] => return Err(BodyError::RawDer),
        _ => {}
    }
    let is_space = |b: &u8| matches!(b, b'\r' | b'\n' | b'\t' | b' ');
    let characters: Vec<u8> = body.iter().copied().filter(|b| !is_space(b)).collect();
    let is_base64 = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=');
    if let Some(other) = characters.iter().copied().find(|b| !is_base64(*b)) {
        return Err(match other {
            b'-' | b'_' => BodyError::UrlAlphabet,
            b' '..=b'~' => {
                BodyError::OtherCharacter(Excerpt::of(format_args!("\"{}\"", char::from(other)), 8))
            }
            _ => BodyError::OtherCharacter(Excerpt::of(format_args!("0x{other:02x}"), 8)),
        });
    }
    let digits = characters.iter().take_while(|b| **b != b'=').count();
    if !characters.len().is_multiple_of(4) || characters.len() - digits > 2 || digits == 0 {
        return Err(BodyError::Padding);
    }
    if characters.iter().skip(digits).any(|b| *b != b'=') {
        return Err(BodyError::Padding);
    }
    BASE64.decode(&characters).map_err(|_| BodyError::TrailingBits)
}

/// The certificates of a message in DER or BER, each in the bytes that the message has for it, in
/// its order. What else is in it is skipped: CRLs, attribute certificates, signers, content.
///
/// Reading is linear in the size of the message, and its depth is bounded by the parser.
pub(super) fn certificates(message: &[u8]) -> Result<Vec<&[u8]>, BodyError> {
    let (content_info, rest) = element(message, "it is no ASN.1")?;
    if !is(&content_info, Class::Universal, Tag::Sequence) {
        return Err(BodyError::NotPkcs7("it begins with no ContentInfo"));
    }
    if X509Certificate::from_der(message).is_ok_and(|(rest, _)| rest.is_empty()) {
        return Err(BodyError::BareCertificate);
    }
    let (content_type, content) = element(content_info.data, "its ContentInfo is cut off")?;
    if !is(&content_type, Class::Universal, Tag::Oid) {
        return Err(BodyError::NotPkcs7("it begins with no ContentInfo"));
    }
    if content_type.data != SIGNED_DATA {
        let is_pkcs7 = content_type.data.starts_with(PKCS7);
        return Err(match is_pkcs7 {
            true => BodyError::NotSignedData,
            false => BodyError::NotPkcs7("its content type is none of PKCS#7"),
        });
    }
    if !rest.is_empty() {
        return Err(BodyError::TrailingBytes);
    }
    let content = only(content, Class::ContextSpecific, Tag(0), "its ContentInfo has no one content")?;
    let signed_data = only(content.data, Class::Universal, Tag::Sequence, "its content is no SignedData")?;
    let rest = signed_data.data;
    // version, digestAlgorithms, encapContentInfo: the kinds tell that it is one.
    let mut rest = rest;
    for tag in [Tag::Integer, Tag::Set, Tag::Sequence] {
        let (found, after) = element(rest, "its SignedData is cut off")?;
        if !is(&found, Class::Universal, tag) {
            return Err(BodyError::NotPkcs7("its content is no SignedData"));
        }
        rest = after;
    }
    let mut found: Option<Any<'_>> = None;
    while !rest.is_empty() {
        let (field, after) = element(rest, "its SignedData is cut off")?;
        if is(&field, Class::ContextSpecific, Tag(0)) && found.replace(field).is_some() {
            return Err(BodyError::NotPkcs7("its SignedData has two sets of certificates"));
        }
        rest = after;
    }
    let mut rest = found.ok_or(BodyError::NoCertificates)?.data;
    let mut certificates = Vec::new();
    for _ in 0..MAX_ELEMENTS {
        if rest.is_empty() {
            break;
        }
        let (choice, after) = element(rest, "an element of its certificates is cut off")?;
        // CertificateChoices: what is no Certificate is tagged (RFC 5652 section 10.2.2).
        if is(&choice, Class::Universal, Tag::Sequence)
            && let Some(whole) = rest.get(..rest.len() - after.len())
        {
            certificates.push(whole);
        }
        rest = after;
    }
    if certificates.is_empty() { Err(BodyError::NoCertificates) } else { Ok(certificates) }
}

/// The first element of these bytes, and what follows it.
fn element<'a>(bytes: &'a [u8], otherwise: &'static str) -> Result<(Any<'a>, &'a [u8]), BodyError> {
    match Any::from_ber(bytes) {
        Ok((rest, element)) => Ok((element, rest)),
        Err(_) => Err(BodyError::NotPkcs7(otherwise)),
    }
}

/// The one element of these bytes, of this kind.
fn only<'a>(bytes: &'a [u8], class: Class, tag: Tag, otherwise: &'static str) -> Result<Any<'a>, BodyError> {
    let (element, rest) = element(bytes, otherwise)?;
    if rest.is_empty() && is(&element, class, tag) {
        Ok(element)
    } else {
        Err(BodyError::NotPkcs7(otherwise))
    }
}

fn is(element: &Any<'_>, class: Class, tag: Tag) -> bool {
    let is_constructed = !matches!(tag, Tag::Integer | Tag::Oid);
    element.class() == class && element.tag() == tag && element.header.constructed() == is_constructed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x509::wrap;
    use rcgen::{CertificateParams, KeyPair};

    const ID_DATA: &[u8] = &[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 1];

    pub(crate) fn certificate() -> Vec<u8> {
        let key = KeyPair::generate().unwrap();
        CertificateParams::default().self_signed(&key).unwrap().der().to_vec()
    }

    /// An element of indefinite length, as BER has it.
    fn open(tag: u8, content: &[u8]) -> Vec<u8> {
        [&[tag, 0x80], content, &[0, 0]].concat()
    }

    type Wrap = fn(u8, &[u8]) -> Vec<u8>;

    /// A certs-only message of these certificates, and `more` fields after them.
    fn message(wrap: Wrap, certificates: &[u8], more: &[u8]) -> Vec<u8> {
        let fields =
            [&[2, 1, 1, 0x31, 0][..], &wrap(0x30, ID_DATA), &wrap(0xa0, certificates), more, &[0x31, 0]];
        let content = wrap(0xa0, &wrap(0x30, &fields.concat()));
        wrap(0x30, &[&super::super::tests::oid(SIGNED_DATA)[..], &content].concat())
    }

    #[test]
    fn certificates_are_read_in_der_and_ber() {
        let (one, two) = (certificate(), certificate());
        let both = [&one[..], &two].concat();
        // Lengths that are longer than they need to be.
        let long: Wrap = |tag, content| {
            let length = u32::try_from(content.len()).unwrap().to_be_bytes();
            [&[tag, 0x84], &length[..], content].concat()
        };
        for wrap in [wrap, open, long] {
            assert_eq!(certificates(&message(wrap, &both, &[])).unwrap(), [&one[..], &two]);
            // Two of the same, and then others.
            let twice = [&one[..], &one].concat();
            assert_eq!(certificates(&message(wrap, &twice, &[])).unwrap(), [&one[..], &one]);
            let choices =
                [&wrap(0xa1, b""), &one[..], &wrap(0xa2, &one), &wrap(0xa3, &[]), &[5, 0], &two].concat();
            let crls = wrap(0xa1, &wrap(0x30, &[]));
            assert_eq!(certificates(&message(wrap, &choices, &crls)).unwrap(), [&one[..], &two]);
        }
    }

    #[test]
    fn message_of_another_kind_has_its_reason() {
        use BodyError as E;
        let one = certificate();
        let good = message(wrap, &one, &[]);
        let of_type = |oid: &[u8], content: &[u8]| {
            wrap(0x30, &[super::super::tests::oid(oid), wrap(0xa0, content)].concat())
        };
        let enveloped = [PKCS7, &[3]].concat();
        for (message, why) in [
            (one.clone(), E::BareCertificate),
            ([&good[..], &[0]].concat(), E::TrailingBytes),
            ([&good[..], &good].concat(), E::TrailingBytes),
            (message(wrap, &[], &[]), E::NoCertificates),
            (message(wrap, &wrap(0xa1, &one), &[]), E::NoCertificates),
            (of_type(&enveloped, &[0x30, 0]), E::NotSignedData),
            (of_type(&[0x55, 4, 3], &[0x30, 0]), E::NotPkcs7("its content type is none of PKCS#7")),
            (of_type(SIGNED_DATA, &[0x31, 0]), E::NotPkcs7("its content is no SignedData")),
            (of_type(SIGNED_DATA, &[0x30, 0]), E::NotPkcs7("its SignedData is cut off")),
            (of_type(SIGNED_DATA, &[0x30, 2, 0x31, 0]), E::NotPkcs7("its content is no SignedData")),
            (
                message(wrap, &one, &wrap(0xa0, &one)),
                E::NotPkcs7("its SignedData has two sets of certificates"),
            ),
            (
                message(wrap, &[&one[..], &[0x30]].concat(), &[]),
                E::NotPkcs7("an element of its certificates is cut off"),
            ),
            (good[..good.len() - 1].to_vec(), E::NotPkcs7("it is no ASN.1")),
            (b"hello".to_vec(), E::NotPkcs7("it is no ASN.1")),
            (vec![5, 0], E::NotPkcs7("it begins with no ContentInfo")),
            (vec![0x30, 2, 5, 0], E::NotPkcs7("it begins with no ContentInfo")),
            (vec![], E::NotPkcs7("it is no ASN.1")),
            // Deeper than any certificate.
            ([[0x30, 0x80].repeat(60), [0, 0].repeat(60)].concat(), E::NotPkcs7("it is no ASN.1")),
        ] {
            assert_eq!(certificates(&message), Err(why), "{message:02x?}");
        }
    }

    #[test]
    fn message_of_many_elements_is_read_in_bounds() {
        let one = certificate();
        let many = message(wrap, &one.repeat(400), &[]);
        assert_eq!(certificates(&many).unwrap().len(), 400);
        let tiny = message(open, &[0x30, 0].repeat(90_000), &[]);
        assert_eq!(certificates(&tiny).unwrap().len(), MAX_ELEMENTS);
    }

    #[test]
    fn base64_is_decoded_however_it_is_broken() {
        let der = [0xfb, 0xff, 0xbe, 0x30, 0x31];
        for text in ["+/++MDE=", "+/++MDE=\n", "+/+\r\n+MD\tE =\r\n", " +/++M\n\nDE=", "+/++MDE\n="] {
            assert_eq!(decode(text.as_bytes()).unwrap(), der, "{text:?}");
        }
        let long: String = BASE64.encode([7; 300]).chars().flat_map(|c| [c, '\r', '\n']).collect();
        assert_eq!(decode(long.as_bytes()).unwrap(), [7; 300]);
        use BodyError as E;
        let other = |c: &str| E::OtherCharacter(Excerpt::of(c, 9));
        for (text, why) in [
            (&b""[..], E::Empty),
            (b" \r\n", E::Empty),
            (b"-_--MDE=", E::UrlAlphabet),
            (b"+/++MDE", E::Padding),
            (b"+/++MDE==", E::Padding),
            (b"+/++M===", E::Padding),
            (b"====", E::Padding),
            (b"+/++MDE=+/++", E::Padding),
            (b"MDE=MDE=", E::Padding),
            (b"+/++MDE=\0", other("0x00")),
            (b"+/\0++MDE=", other("0x00")),
            (b"+/++MDE=\x0b", other("0x0b")),
            (b"\xef\xbb\xbf+/++MDE=", other("0xef")),
            (b"+/++MDE!", other("\"!\"")),
            (b"+/++MDF=", E::TrailingBits),
            (b"<html><body>hello</body></html>", E::WebPage),
            (b"\n <?xml version=\"1.0\"?>", E::WebPage),
            (b"-----BEGIN PKCS7-----\nMDE=\n-----END PKCS7-----\n", E::Pem),
            (&[0x30, 0x82, 4, 0, 6, 9], E::RawDer),
            (&[0x30, 0x80, 6, 9], E::RawDer),
        ] {
            assert_eq!(decode(text), Err(why), "{:?}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn media_type_is_compared_without_parameters() {
        for given in [
            "application/pkcs7-mime",
            "Application/PKCS7-Mime; smime-type=certs-only",
            "application/pkcs7-mime ; smime-type=\"certs-only\"; charset=x",
            " application/pkcs7-mime;",
        ] {
            assert_eq!(check_media_type(Some(given)), Ok(()), "{given}");
        }
        assert_eq!(check_media_type(None), Err(BodyError::NoMediaType));
        for given in [
            "",
            "text/plain",
            "application/pkcs7-mimes",
            "application/pkcs7",
            "application/pkcs10;application/pkcs7-mime",
        ] {
            assert!(matches!(check_media_type(Some(given)), Err(BodyError::OtherMediaType(_))), "{given}");
        }
    }
}
