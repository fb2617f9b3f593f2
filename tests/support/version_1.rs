//! Certificates of X.509 version 1. From 3.2 on OpenSSL makes them in few ways only, before that in
//! others.

use rcgen::{KeyPair, SigningKey as _};

/// The same certificate as one of version 1, without extensions, and signed anew.
pub(crate) fn version_1(certificate: &[u8], issuer: &KeyPair) -> Vec<u8> {
    let signed = elements(content(certificate));
    let [tbs, algorithm, _signature] = &signed[..] else { panic!("no certificate") };
    // Version and extensions are the members tagged [0] and [3] (RFC 5280 section 4.1).
    let remaining: Vec<_> =
        elements(content(tbs)).into_iter().filter(|e| ![0xa0, 0xa3].contains(&e[0])).collect();
    let tbs = element(0x30, &remaining.concat());
    let signature = element(0x03, &[&[0], &issuer.sign(&tbs).unwrap()[..]].concat());
    element(0x30, &[&tbs, *algorithm, &signature].concat())
}

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let first = length.iter().position(|byte| *byte != 0).unwrap_or(length.len() - 1);
    let length = &length[first..];
    let long: &[u8] = if content.len() < 0x80 { &[] } else { &[0x80 | length.len() as u8] };
    [&[tag], long, length, content].concat()
}

/// Length of the head of the element that begins here, and of its content.
fn lengths(der: &[u8]) -> (usize, usize) {
    match der[1] {
        short @ ..0x80 => (2, short.into()),
        long => {
            let bytes = usize::from(long & 0x7f);
            (2 + bytes, der[2..2 + bytes].iter().fold(0, |length, byte| length << 8 | usize::from(*byte)))
        }
    }
}

fn content(element: &[u8]) -> &[u8] {
    let (head, length) = lengths(element);
    &element[head..head + length]
}

fn elements(mut der: &[u8]) -> Vec<&[u8]> {
    let mut elements = Vec::new();
    while !der.is_empty() {
        let (head, length) = lengths(der);
        let (element, rest) = der.split_at(head + length);
        elements.push(element);
        der = rest;
    }
    elements
}
