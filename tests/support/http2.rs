//! HTTP/2 written by hand (RFC 9113), for what no library would send.

use std::io::Read;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame (section 4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
    [&[a, b, c, kind, flags], &stream.to_be_bytes()[..], payload].concat()
}

/// HPACK (RFC 7541) of a gRPC call, with every string written out.
pub(crate) fn headers(path: &str, security_header: &str) -> Vec<u8> {
    let mut headers = b"\x83\x86".to_vec(); // POST, http
    for (name, value) in [
        (":path", path),
        (":authority", "x"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("workload.spiffe.io", security_header),
    ] {
        headers.push(0); // a name that is written out
        for text in [name, value] {
            headers.push(text.len() as u8);
            headers.extend(text.as_bytes());
        }
    }
    headers
}

/// A frame as it was received.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// The next frame; `None` at the end, however it came.
pub(crate) fn receive(from: &mut impl Read) -> Option<Received> {
    let mut head = [0; 9];
    from.read_exact(&mut head).ok()?;
    let [a, b, c, kind, flags, stream @ ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    from.read_exact(&mut payload).ok()?;
    Some(Received { kind, flags, stream: u32::from_be_bytes(stream), payload })
}
