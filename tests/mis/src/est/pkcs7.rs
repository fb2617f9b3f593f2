//! The certs-only PKCS#7 of EST (X53, RFC 8951): a `SignedData` without signers, written by hand, so
//! that it shares nothing with the agent's reader.

use crate::x509::Der;

const SIGNED_DATA: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02];
const DATA: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const CONTEXT_0: u8 = 0xa0;
const CONTEXT_1: u8 = 0xa1;

/// What goes into a `SignedData`.
#[derive(Debug, Default)]
pub struct Bag {
    /// `certificates`, in this order.
    pub certificates: Vec<Der>,
    /// `crls`; present, and perhaps empty.
    pub crls: Option<Vec<Der>>,
    /// BER with indefinite lengths around the certificates.
    pub ber: bool,
}

impl Bag {
    /// These certificates in the order of DER, which is that of their bytes.
    pub fn sorted(mut certificates: Vec<Der>) -> Self {
        certificates.sort();
        Self { certificates, ..Self::default() }
    }

    /// The `ContentInfo`.
    pub fn encode(&self) -> Vec<u8> {
        let wrap = |tag: u8, parts: &[&[u8]]| if self.ber { indefinite(tag, parts) } else { tlv(tag, parts) };
        let certificates = wrap(CONTEXT_0, &[&self.certificates.concat()]);
        let crls = self.crls.as_ref().map(|crls| wrap(CONTEXT_1, &[&crls.concat()])).unwrap_or_default();
        let signed_data = wrap(
            SEQUENCE,
            &[
                &[0x02, 0x01, 0x01], // version
                &wrap(SET, &[]),     // digestAlgorithms
                &wrap(SEQUENCE, &[DATA]),
                &certificates,
                &crls,
                &wrap(SET, &[]), // signerInfos
            ],
        );
        wrap(SEQUENCE, &[SIGNED_DATA, &wrap(CONTEXT_0, &[&signed_data])])
    }
}

/// One element with a definite length, as short as possible.
pub fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let mut out = vec![tag];
    let length = body.len().to_be_bytes();
    let length = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    match body.len() {
        0..0x80 => out.push(body.len() as u8),
        _ => {
            out.push(0x80 | length.len() as u8);
            out.extend(length);
        }
    }
    out.extend(body);
    out
}

fn indefinite(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    [&[tag, 0x80], parts.concat().as_slice(), &[0, 0]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_as_short_as_possible() {
        for (length, head) in [
            (0, &[4_u8, 0][..]),
            (127, &[4, 127]),
            (128, &[4, 0x81, 128]),
            (255, &[4, 0x81, 255]),
            (256, &[4, 0x82, 1, 0]),
            (65_536, &[4, 0x83, 1, 0, 0]),
        ] {
            let element = tlv(4, &[&vec![7; length]]);
            assert_eq!(element.len(), head.len() + length);
            assert_eq!(&element[..head.len()], head);
        }
    }
}
