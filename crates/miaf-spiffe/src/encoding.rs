//! The form of a certificate's DER (X.690), where x509-parser passes over it.
//!
//! x509-parser ignores the constructed bit of a name's tag, bytes behind an extension's value, and
//! needless bytes of an integer. The parsers of peers do not: OpenSSL and Go cannot read such a
//! certificate at all.

const CONSTRUCTED: u8 = 0x20;
const CLASS: u8 = 0xc0;
const CONTEXT_SPECIFIC: u8 = 0x80;
const NUMBER: u8 = 0x1f;

/// Nesting limit of elements; a certificate has about ten levels.
const MAX_DEPTH: usize = 32;

/// One element: its identifier byte and its content.
struct Element<'a> {
    tag: u8,
    content: &'a [u8],
}

/// Whether these bytes are exactly one element, and it and all in it are DER.
pub(crate) fn is_der(bytes: &[u8]) -> bool {
    matches!(elements(bytes).as_deref(), Some([element]) if element.is_der(MAX_DEPTH))
}

/// Whether these bytes, which are DER, are `GeneralNames` (RFC 5280 section 4.2.1.6), each in the
/// form of its kind.
pub(crate) fn are_general_names(bytes: &[u8]) -> bool {
    let Some([names]) = elements(bytes).map(<[Element<'_>; 1]>::try_from).and_then(Result::ok) else {
        return false;
    };
    names.tag == 0x30
        && elements(names.content).is_some_and(|names| names.iter().all(Element::is_general_name))
}

impl Element<'_> {
    fn is_der(&self, depth: usize) -> bool {
        let is_constructed = self.tag & CONSTRUCTED != 0;
        if is_constructed {
            let inner = depth.checked_sub(1).zip(elements(self.content));
            if !inner.is_some_and(|(depth, inner)| inner.iter().all(|element| element.is_der(depth))) {
                return false;
            }
        }
        if self.tag & CLASS != 0 {
            return true; // the form follows from where it is
        }
        match (self.tag & NUMBER, self.content) {
            // EXTERNAL, EMBEDDED PDV, SEQUENCE, SET, CHARACTER STRING.
            (8 | 11 | 16 | 17 | 29, _) => is_constructed,
            _ if is_constructed => false,
            // BOOLEAN.
            (1, content) => matches!(content, [0 | 0xff]),
            // INTEGER, ENUMERATED: no needless byte in front (X.690 section 8.3.2).
            (2 | 10, content) => !matches!(content, [] | [0, 0..=0x7f, ..] | [0xff, 0x80..=0xff, ..]),
            // BIT STRING: unused bits are zero (X.690 section 11.2.1).
            (3, [unused, bits @ ..]) => match bits.last() {
                Some(last) => *unused < 8 && last.trailing_zeros() >= u32::from(*unused),
                None => *unused == 0,
            },
            (3, []) => false,
            // NULL.
            (5, content) => content.is_empty(),
            (6, content) => is_object_identifier(content),
            _ => true,
        }
    }

    fn is_general_name(&self) -> bool {
        if self.tag & CLASS != CONTEXT_SPECIFIC {
            return false;
        }
        match (self.tag & NUMBER, self.tag & CONSTRUCTED != 0) {
            // otherName, x400Address, directoryName, ediPartyName.
            (0 | 3 | 4 | 5, is_constructed) => is_constructed,
            // rfc822Name, dNSName, uniformResourceIdentifier: IA5String.
            (1 | 2 | 6, false) => self.content.is_ascii(),
            // iPAddress.
            (7, false) => matches!(self.content.len(), 4 | 16),
            // registeredID.
            (8, false) => is_object_identifier(self.content),
            _ => false,
        }
    }
}

/// X.690 section 8.19: subidentifiers of seven bits a byte, without needless zeros in front.
fn is_object_identifier(content: &[u8]) -> bool {
    let begins = std::iter::once(&0).chain(content).zip(content);
    content.last().is_some_and(|last| *last < 0x80)
        && begins.into_iter().all(|(before, first)| *before >= 0x80 || *first != 0x80)
}

/// The elements that follow one another in these bytes. `None`: not to the last byte, or not with
/// the shortest lengths.
fn elements(mut bytes: &[u8]) -> Option<Vec<Element<'_>>> {
    let mut elements = Vec::new();
    while !bytes.is_empty() {
        let (&tag, rest) = bytes.split_first()?;
        if tag & NUMBER == NUMBER {
            return None; // a number of several bytes; certificates have none
        }
        let (length, rest) = length(rest)?;
        let (content, rest) = rest.split_at_checked(length)?;
        elements.push(Element { tag, content });
        bytes = rest;
    }
    Some(elements)
}

/// A definite length in its shortest form (X.690 section 10.1), and what follows.
fn length(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    if first < 0x80 {
        return Some((usize::from(first), rest));
    }
    let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
    let length = digits.iter().try_fold(0_usize, |length, &digit| {
        length.checked_mul(256).map(|length| length | usize::from(digit))
    })?;
    let is_shortest = length >= 0x80 && digits.first() != Some(&0);
    is_shortest.then_some((length, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn der_is_told_from_near_der() {
        let good: &[&[u8]] = &[
            &[0x01, 1, 0],
            &[0x01, 1, 0xff],
            &[0x02, 1, 0],
            &[0x02, 2, 0, 0x80],
            &[0x02, 2, 0xff, 0x7f],
            &[0x03, 1, 0],
            &[0x03, 2, 7, 0x80],
            &[0x04, 0],
            &[0x05, 0],
            &[0x06, 3, 0x55, 0x1d, 0x11],
            &[0x06, 3, 0x55, 0x81, 0x00],
            &[0x30, 0],
            &[0x30, 4, 0x31, 2, 0x05, 0],
            &[0x86, 1, 0xff],
            &[0xa6, 2, 0x05, 0],
        ];
        for bytes in good {
            assert!(is_der(bytes), "{bytes:02x?}");
        }
        let bad: &[&[u8]] = &[
            &[],
            &[0x01],
            &[0x01, 0],
            &[0x01, 1, 1],
            &[0x01, 2, 0xff, 0xff],
            &[0x21, 3, 1, 1, 0xff],
            &[0x02, 0],
            &[0x02, 2, 0, 0],
            &[0x02, 2, 0, 0x7f],
            &[0x02, 2, 0xff, 0x80],
            &[0x22, 3, 2, 1, 1],
            &[0x0a, 0],
            &[0x03, 0],
            &[0x03, 1, 1],
            &[0x03, 2, 8, 0],
            &[0x03, 2, 1, 1],
            &[0x23, 4, 3, 2, 0, 0],
            &[0x24, 3, 4, 1, 0],
            &[0x05, 1, 0],
            &[0x06, 0],
            &[0x06, 2, 0x55, 0x80],
            &[0x06, 3, 0x55, 0x80, 0x01],
            &[0x06, 2, 0x80, 0x01],
            &[0x10, 0],
            &[0x11, 0],
            &[0x1f, 0x81, 0x01, 0],
            &[0x30, 0x80, 0, 0],
            &[0x30, 0x81, 0],
            &[0x30, 0x82, 0, 0],
            &[0x30, 1],
            &[0x30, 2, 0x21, 0],
            &[0x30, 0, 0],
            &[0x30, 0, 0x30, 0],
            &[0x04, 0x88, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[0x04, 0x89, 1, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0xa6, 2, 0x21, 0],
        ];
        for bytes in bad {
            assert!(!is_der(bytes), "{bytes:02x?}");
        }
        let long = [&[0x04, 0x81, 0x80][..], &[7; 0x80]].concat();
        assert!(is_der(&long) && !is_der(&long[..0x82]));
    }

    #[test]
    fn nesting_of_elements_is_limited() {
        let nested = |levels: usize| {
            (0..levels).fold(Vec::new(), |inner, _| {
                let length = inner.len();
                let head =
                    if length < 0x80 { vec![0x30, length as u8] } else { vec![0x30, 0x81, length as u8] };
                [head, inner].concat()
            })
        };
        assert!(is_der(&nested(MAX_DEPTH)));
        assert!(!is_der(&nested(MAX_DEPTH + 1)));
    }

    #[test]
    fn general_names_have_one_form_each() {
        let is_name = |tag: u8, content: &[u8]| {
            let name = [&[tag, content.len() as u8], content].concat();
            are_general_names(&[&[0x30, name.len() as u8], &name[..]].concat())
        };
        let empty: &[u8] = &[0x30, 0];
        for (number, content) in [
            (0, empty),
            (1, b"a@b"),
            (2, b"a.b"),
            (3, empty),
            (4, empty),
            (5, empty),
            (6, b"a:b"),
            (7, &[127, 0, 0, 1]),
            (7, &[0; 16]),
            (8, &[0x55]),
        ] {
            let (primitive, constructed) = (0x80 | number, 0xa0 | number);
            let is_constructed = [0, 3, 4, 5].contains(&number);
            assert_eq!(is_name(primitive, content), !is_constructed, "{primitive:x}");
            assert_eq!(is_name(constructed, content), is_constructed, "{constructed:x}");
        }
        for (tag, content) in [
            (0x81, "ü".as_bytes()),
            (0x82, &[0xff]),
            (0x86, &[0x80]),
            (0x87, &[0; 5]),
            (0x87, &[]),
            (0x88, &[]),
            (0x89, &[]),
            (0x16, b"a:b"),
            (0x46, b"a:b"),
        ] {
            assert!(!is_name(tag, content), "{tag:x} {content:x?}");
        }
        assert!(are_general_names(&[0x30, 0]));
        assert!(!are_general_names(&[0x31, 0]) && !are_general_names(&[0x86, 0]) && !are_general_names(&[]));
    }
}
