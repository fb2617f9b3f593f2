//! The `:authority` of requests in HTTP/2, made one that can be read.
//!
//! A program that calls a Unix socket has no host to name. The gRPC libraries for C++, Python, Ruby and others name the path
//! of the socket instead, as in `run%2Fmiaf-agent%2Fagent.sock`. That is no host (RFC 9113, section 8.3.1), and `h2` resets the
//! stream (hyperium/h2#487, grpc/grpc#38142). Nobody here wants to know it: who is called is known from the socket. So the
//! value is overwritten with as many X on its way in. Nothing moves, and the entries of the tables of the header compression
//! (HPACK, RFC 7541) have the same places at both ends as before; but a value in the Huffman code is decoded to another length,
//! so that the table here may evict its oldest entries at other times than the client's: later, which no client notices,
//! unless it uses the code where that makes a value longer.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a client of HTTP/2 begins with (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frames and their flags (RFC 9113, sections 4.1, 6.2 and 6.10).
const HEAD: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const PADDED: u8 = 0x08;
const PRIORITY: u8 = 0x20;
const PRIORITY_OCTETS: usize = 5;

/// Where `:authority` is in the table that both ends have from the start (RFC 7541, appendix A).
const AUTHORITY: usize = 1;
/// The same written out, as it is, and in the Huffman code.
const NAME: &[u8] = b":authority";
const HUFFMAN_NAME: &[u8] = b"\xb8\x3b\x53\x39\xec\x32\x7d\x7f";
/// The X as it is, and in the Huffman code (RFC 7541, appendix B), where it has eight bits too.
const X: u8 = b'X';
const HUFFMAN_X: u8 = 0xfc;

/// What is read from a connection, mended. HTTP/1.1 passes through as it is.
#[derive(Debug)]
pub(super) struct Mended<R> {
    from: R,
    place: Place,
    block: Block,
}

impl<R> Mended<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from, place: Place::Preface(0), block: Block::Field }
    }

    fn mend(&mut self, mut octets: &mut [u8]) {
        while !octets.is_empty() && !matches!(self.place, Place::Elsewhere) {
            let done = match &mut self.place {
                Place::Frame(frame)
                    if frame.fragment > 0 && frame.before == 0 && !frame.begins_with_padding =>
                {
                    let length = frame.fragment.min(octets.len());
                    frame.fragment -= length;
                    octets.iter_mut().take(length).for_each(|octet| self.block.take(octet));
                    length
                }
                _ => self.pass(octets),
            };
            octets = octets.get_mut(done..).unwrap_or_default();
            if matches!(
                self.place,
                Place::Frame(Frame { begins_with_padding: false, before: 0, fragment: 0, after: 0 })
            ) {
                self.place = Place::Head([0; HEAD], 0);
            }
        }
    }

    /// Passes over what is no header. Returns how much that was.
    fn pass(&mut self, octets: &[u8]) -> usize {
        let Some(first) = octets.first() else { return 0 };
        match &mut self.place {
            Place::Elsewhere => octets.len(),
            Place::Preface(read) => {
                let is_as_expected = PREFACE.get(*read) == Some(first);
                *read += 1;
                if !is_as_expected {
                    self.place = Place::Elsewhere;
                } else if *read == PREFACE.len() {
                    self.place = Place::Head([0; HEAD], 0);
                }
                1
            }
            Place::Head(head, read) => {
                if let Some(octet) = head.get_mut(*read) {
                    *octet = *first;
                }
                *read += 1;
                if *read == HEAD {
                    let head = *head;
                    if head.get(3) == Some(&HEADERS) {
                        self.block = Block::Field;
                    }
                    self.place = Place::Frame(Frame::of(head));
                }
                1
            }
            Place::Frame(frame) if frame.begins_with_padding => {
                frame.begins_with_padding = false;
                frame.after = usize::from(*first).min(frame.fragment);
                frame.fragment -= frame.after;
                1
            }
            Place::Frame(frame) => {
                let part = if frame.before > 0 { &mut frame.before } else { &mut frame.after };
                let length = (*part).min(octets.len());
                *part -= length;
                length
            }
        }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Mended<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.from).poll_read(cx, buffer))?;
        self.mend(buffer.filled_mut().get_mut(before..).unwrap_or_default());
        Poll::Ready(Ok(()))
    }
}

/// What is written passes through.
impl<W: AsyncWrite + Unpin> AsyncWrite for Mended<W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.from).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.from).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.from.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.from).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.from).poll_shutdown(cx)
    }
}

/// Where in the connection the next octet is.
#[derive(Debug)]
enum Place {
    /// So much of the preface has come.
    Preface(usize),
    /// In HTTP/1.1.
    Elsewhere,
    /// So much of a frame's head has come.
    Head([u8; HEAD], usize),
    Frame(Frame),
}

/// What is left of a frame, in this order.
#[derive(Debug)]
struct Frame {
    /// The next octet says how long the padding is.
    begins_with_padding: bool,
    before: usize,
    /// Of a block of headers.
    fragment: usize,
    after: usize,
}

impl Frame {
    fn of([a, b, c, kind, flags, ..]: [u8; HEAD]) -> Self {
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        match kind {
            HEADERS => {
                let begins_with_padding = flags & PADDED != 0;
                let before = if flags & PRIORITY != 0 { PRIORITY_OCTETS } else { 0 };
                let fragment = length.saturating_sub(before + usize::from(begins_with_padding));
                Self { begins_with_padding, before, fragment, after: 0 }
            }
            CONTINUATION => Self { begins_with_padding: false, before: 0, fragment: length, after: 0 },
            _ => Self { begins_with_padding: false, before: 0, fragment: 0, after: length },
        }
    }
}

/// Where in a block of headers the next octet is (RFC 7541, sections 5 and 6). Only lengths are followed.
#[derive(Clone, Copy, Debug)]
enum Block {
    /// A field begins.
    Field,
    /// A number goes on.
    Number { so_far: usize, shift: u32, of: Number },
    /// The length of a text begins.
    Length { of: Text },
    /// So much is left of a text.
    Text { of: Text, left: usize, is_huffman: bool },
}

/// What a number says.
#[derive(Clone, Copy, Debug)]
enum Number {
    /// Where the whole field is in the tables, or how large a table is.
    Field,
    /// Where the name of the field is in the tables. 0: it follows.
    Name,
    Length {
        of: Text,
        is_huffman: bool,
    },
}

#[derive(Clone, Copy, Debug)]
enum Text {
    /// As far as it has been read it is that of the authority, or is not.
    Name {
        is_authority: bool,
    },
    Value {
        is_authority: bool,
    },
}

impl Block {
    fn take(&mut self, octet: &mut u8) {
        *self = match *self {
            Self::Field => match *octet {
                0x80.. => Self::number(*octet, 7, Number::Field),
                0x40.. => Self::number(*octet, 6, Number::Name),
                0x20.. => Self::number(*octet, 5, Number::Field),
                _ => Self::number(*octet, 4, Number::Name),
            },
            Self::Number { so_far, shift, of } => {
                let more = usize::from(*octet & 0x7f).checked_shl(shift).unwrap_or(usize::MAX);
                let so_far = so_far.saturating_add(more);
                match *octet {
                    0x80.. => Self::Number { so_far, shift: shift.saturating_add(7), of },
                    _ => Self::after(so_far, of),
                }
            }
            Self::Length { of } => {
                Self::number(*octet, 7, Number::Length { of, is_huffman: *octet & 0x80 != 0 })
            }
            Self::Text { mut of, left, is_huffman } => {
                match &mut of {
                    Text::Name { is_authority } => {
                        let name = if is_huffman { HUFFMAN_NAME } else { NAME };
                        let expected = name.len().checked_sub(left).and_then(|at| name.get(at));
                        *is_authority &= expected == Some(octet);
                    }
                    Text::Value { is_authority: true } => *octet = if is_huffman { HUFFMAN_X } else { X },
                    Text::Value { is_authority: false } => {}
                }
                Self::in_text(of, left - 1, is_huffman)
            }
        }
    }

    /// A number begins in so many of the octet's bits (RFC 7541, section 5.1).
    fn number(octet: u8, bits: u32, of: Number) -> Self {
        let all = (1 << bits) - 1;
        match usize::from(octet) & all {
            number if number < all => Self::after(number, of),
            so_far => Self::Number { so_far, shift: 0, of },
        }
    }

    fn after(number: usize, of: Number) -> Self {
        match (of, number) {
            (Number::Field, _) => Self::Field,
            (Number::Name, 0) => Self::Length { of: Text::Name { is_authority: true } },
            (Number::Name, at) => Self::Length { of: Text::Value { is_authority: at == AUTHORITY } },
            (Number::Length { of, is_huffman }, left) => Self::in_text(of, left, is_huffman),
        }
    }

    fn in_text(of: Text, left: usize, is_huffman: bool) -> Self {
        match (left, of) {
            (0, Text::Name { is_authority }) => Self::Length { of: Text::Value { is_authority } },
            (0, Text::Value { .. }) => Self::Field,
            _ => Self::Text { of, left, is_huffman },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mended(octets: &[u8], at_once: usize) -> Vec<u8> {
        let (mut mended, mut octets) = (Mended::new(()), octets.to_vec());
        octets.chunks_mut(at_once).for_each(|chunk| mended.mend(chunk));
        octets
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// A block as others write it: fields from the tables, a size of a table, and texts of every kind around the authority.
    fn block(name: &[u8], huffman: u8, authority: &[u8]) -> Vec<u8> {
        let long = [b'%'; 300];
        let length = u8::try_from(authority.len()).unwrap();
        [
            &[0x3f, 0xe1, 0x1f, 0x83, 0x86, 0x44, 2][..], // a size of two octets more, POST, http, the path
            b"/%",
            name,
            &[length | huffman],
            authority,
            b"\x40\x0aXauthority\x01%\x40\x0b:authority:\x01%\x40\x09:authorit\x01%",
            &[0x40, 1, b'%', 1, b'%', 0x00, 1, b'%', 0x7f, 0xad, 0x01], // 127 + 173: the value is a long one
            &long,
            &[0x1f, 0x2b, 1, b'%', 0x10, 0, 0, 0xc0, 0xff, 0x05], // a name far down the table, and empty texts
        ]
        .concat()
    }

    #[test]
    fn the_authority_is_overwritten_and_nothing_else_however_the_octets_come() {
        let path = b"run%2Fmiaf-agent%2Fagent.sock";
        let names = [b"\x41".to_vec(), b"\x00\x0a:authority".to_vec(), [b"\x40\x88", HUFFMAN_NAME].concat()];
        let values = [(0, X), (0x80, HUFFMAN_X)];
        for (name, (huffman, written)) in names.iter().flat_map(|name| values.map(|value| (name, value))) {
            let connection = |authority: &[u8]| {
                let block = block(name, huffman, authority);
                let (begin, end) = block.split_at(20);
                let padded = [&[3][..], &[1; 5], begin, b"%%%"].concat();
                [
                    PREFACE.to_vec(),
                    frame(4, 0, b"%%%%%%"),
                    frame(HEADERS, 0, &block),
                    frame(0, 0, b"\x41\x03%%%"),
                    frame(HEADERS, PADDED | PRIORITY, &padded),
                    frame(CONTINUATION, 4, end),
                    frame(HEADERS, 0, &block),
                    frame(8, 0, &[]),
                    frame(CONTINUATION, 4, &[]),
                    frame(0, 0, b"%"),
                ]
                .concat()
            };
            for at_once in [1, 2, 3, 7, 100, 5000] {
                let expected = connection(&[written; 29]);
                assert_eq!(mended(&connection(path), at_once), expected, "{at_once} at once");
            }
        }
    }

    #[test]
    fn http_1_passes_as_it_is() {
        let request = b"PRI / HTTP/1.1\r\nhost: %\r\n\r\n\0\0\x05\x01\0\0\0\0\x01\x41\x03%%%";
        assert_eq!(mended(request, 3), request);
    }

    fn nonsense() -> Vec<u8> {
        (0..4000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
    }

    #[test]
    fn nonsense_in_a_block_changes_nothing_outside_of_blocks() {
        let flags = [0, PADDED, PRIORITY, PADDED | PRIORITY];
        let kinds = flags.into_iter().flat_map(|flags| [(HEADERS, flags), (CONTINUATION, 0), (0, flags)]);
        let nonsense = nonsense();
        let frames: Vec<_> =
            nonsense.chunks(100).zip(kinds.cycle()).map(|(n, (kind, flags))| frame(kind, flags, n)).collect();
        let connection = [PREFACE.to_vec(), frames.concat()].concat();
        let mended = mended(&connection, 5);
        assert_ne!(mended, connection, "there is an authority by chance");
        let mut rest = mended.strip_prefix(PREFACE).unwrap();
        for frame in frames {
            let (is, after) = rest.split_at(frame.len());
            let kept = if matches!(frame[3], HEADERS | CONTINUATION) { HEAD } else { frame.len() };
            assert_eq!(is[..kept], frame[..kept]);
            assert!(is.iter().zip(&frame).all(|(is, was)| is == was || [X, HUFFMAN_X].contains(is)));
            rest = after;
        }
    }

    #[test]
    fn nonsense_ends_in_no_panic() {
        let mut octets = PREFACE.to_vec();
        octets.extend(frame(HEADERS, PADDED, &[]));
        octets.extend(frame(HEADERS, PADDED | PRIORITY, &[0xff, 0xff]));
        octets.extend(frame(
            HEADERS,
            0,
            &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
        ));
        octets.extend(nonsense());
        mended(&octets, 5);
    }
}
