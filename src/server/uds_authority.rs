//! Masks the `:authority` of HTTP/2 requests, so that h2 accepts it.
//!
//! A program that calls a Unix socket has no host to name. The gRPC libraries for C++, Python, Ruby
//! and others name the path of the socket instead, as in `run%2Fmiaf-agent%2Fagent.sock`. That is
//! no host (RFC 9113, section 8.3.1), and `h2` resets the stream (hyperium/h2#487,
//! grpc/grpc#38142). The value is not used here: the socket says what is called. So it is
//! overwritten with as many X while it is read. No byte moves, and the entries of the tables of the
//! header compression (HPACK, RFC 7541) have the same places at both ends as before. But a value in
//! the Huffman code is decoded to another length, so that the table here may evict its oldest
//! entries at other times than the client's: later, which no client notices, unless it uses the
//! code where that makes a value longer.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// First bytes of an HTTP/2 client (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Length of a frame's head, types and flags (RFC 9113, sections 4.1, 6.2 and 6.10).
const HEAD: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const PADDED: u8 = 0x08;
const PRIORITY: u8 = 0x20;
const PRIORITY_BYTES: usize = 5;

/// Index of `:authority` in the static table (RFC 7541, appendix A).
const AUTHORITY: usize = 1;
/// The name as a literal, plain and in the Huffman code.
const NAME: &[u8] = b":authority";
const HUFFMAN_NAME: &[u8] = b"\xb8\x3b\x53\x39\xec\x32\x7d\x7f";
/// X, plain and in the Huffman code (RFC 7541, appendix B), where it has eight bits too.
const X: u8 = b'X';
const HUFFMAN_X: u8 = 0xfc;

/// Stream of a connection whose authorities are masked as they are read. HTTP/1.1 is not changed.
#[derive(Debug)]
pub(super) struct AuthorityMask<R> {
    from: R,
    position: Position,
    block: Block,
}

impl<R> AuthorityMask<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from, position: Position::Preface(0), block: Block::Field }
    }

    fn mask(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() && !matches!(self.position, Position::Http1) {
            let done = match &mut self.position {
                Position::Frame(frame)
                    if frame.fragment > 0 && frame.before == 0 && !frame.begins_with_padding =>
                {
                    let length = frame.fragment.min(bytes.len());
                    frame.fragment -= length;
                    bytes.iter_mut().take(length).for_each(|byte| self.block.take(byte));
                    length
                }
                _ => self.skip(bytes),
            };
            bytes = bytes.get_mut(done..).unwrap_or_default();
            if matches!(
                self.position,
                Position::Frame(Frame { begins_with_padding: false, before: 0, fragment: 0, after: 0 })
            ) {
                self.position = Position::Head([0; HEAD], 0);
            }
        }
    }

    /// Skips bytes outside of header blocks. Returns their number.
    fn skip(&mut self, bytes: &[u8]) -> usize {
        let Some(first) = bytes.first() else { return 0 };
        match &mut self.position {
            Position::Http1 => bytes.len(),
            Position::Preface(read) => {
                let is_as_expected = PREFACE.get(*read) == Some(first);
                *read += 1;
                if !is_as_expected {
                    self.position = Position::Http1;
                } else if *read == PREFACE.len() {
                    self.position = Position::Head([0; HEAD], 0);
                }
                1
            }
            Position::Head(head, read) => {
                if let Some(byte) = head.get_mut(*read) {
                    *byte = *first;
                }
                *read += 1;
                if *read == HEAD {
                    let head = *head;
                    if head.get(3) == Some(&HEADERS) {
                        self.block = Block::Field;
                    }
                    self.position = Position::Frame(Frame::of(head));
                }
                1
            }
            Position::Frame(frame) if frame.begins_with_padding => {
                frame.begins_with_padding = false;
                frame.after = usize::from(*first).min(frame.fragment);
                frame.fragment -= frame.after;
                1
            }
            Position::Frame(frame) => {
                let part = if frame.before > 0 { &mut frame.before } else { &mut frame.after };
                let length = (*part).min(bytes.len());
                *part -= length;
                length
            }
        }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for AuthorityMask<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.from).poll_read(cx, buffer))?;
        self.mask(buffer.filled_mut().get_mut(before..).unwrap_or_default());
        Poll::Ready(Ok(()))
    }
}

/// What is written is not changed.
impl<W: AsyncWrite + Unpin> AsyncWrite for AuthorityMask<W> {
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

/// Position of the next byte in the connection.
#[derive(Debug)]
enum Position {
    /// In the preface, after this many bytes.
    Preface(usize),
    /// In HTTP/1.1.
    Http1,
    /// In a frame's head, after this many bytes.
    Head([u8; HEAD], usize),
    Frame(Frame),
}

/// The parts of a frame that are left, in this order.
#[derive(Debug)]
struct Frame {
    /// The next byte is the length of the padding.
    begins_with_padding: bool,
    before: usize,
    /// Bytes of a header block.
    fragment: usize,
    after: usize,
}

impl Frame {
    fn of([a, b, c, kind, flags, ..]: [u8; HEAD]) -> Self {
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        match kind {
            HEADERS => {
                let begins_with_padding = flags & PADDED != 0;
                let before = if flags & PRIORITY != 0 { PRIORITY_BYTES } else { 0 };
                let fragment = length.saturating_sub(before + usize::from(begins_with_padding));
                Self { begins_with_padding, before, fragment, after: 0 }
            }
            CONTINUATION => Self { begins_with_padding: false, before: 0, fragment: length, after: 0 },
            _ => Self { begins_with_padding: false, before: 0, fragment: 0, after: length },
        }
    }
}

/// Position of the next byte in a header block (RFC 7541, sections 5 and 6). Only lengths are
/// followed.
#[derive(Clone, Copy, Debug)]
enum Block {
    /// A field begins.
    Field,
    /// Within a number.
    Number { so_far: usize, shift: u32, of: Number },
    /// The length of a text begins.
    Length { of: Text },
    /// Within a text of which `left` bytes are left.
    Text { of: Text, left: usize, is_huffman: bool },
}

/// Meaning of a number.
#[derive(Clone, Copy, Debug)]
enum Number {
    /// Index of a whole field in the tables, or the size of a table.
    Field,
    /// Index of a field's name in the tables; 0 if the name follows.
    Name,
    Length {
        of: Text,
        is_huffman: bool,
    },
}

#[derive(Clone, Copy, Debug)]
enum Text {
    /// A name, and whether the part that has been read is that of the authority.
    Name {
        is_authority: bool,
    },
    Value {
        is_authority: bool,
    },
}

impl Block {
    fn take(&mut self, byte: &mut u8) {
        *self = match *self {
            Self::Field => match *byte {
                0x80.. => Self::number(*byte, 7, Number::Field),
                0x40.. => Self::number(*byte, 6, Number::Name),
                0x20.. => Self::number(*byte, 5, Number::Field),
                _ => Self::number(*byte, 4, Number::Name),
            },
            Self::Number { so_far, shift, of } => {
                let more = usize::from(*byte & 0x7f).checked_shl(shift).unwrap_or(usize::MAX);
                let so_far = so_far.saturating_add(more);
                match *byte {
                    0x80.. => Self::Number { so_far, shift: shift.saturating_add(7), of },
                    _ => Self::after(so_far, of),
                }
            }
            Self::Length { of } => {
                Self::number(*byte, 7, Number::Length { of, is_huffman: *byte & 0x80 != 0 })
            }
            Self::Text { mut of, left, is_huffman } => {
                match &mut of {
                    Text::Name { is_authority } => {
                        let name = if is_huffman { HUFFMAN_NAME } else { NAME };
                        let expected = name.len().checked_sub(left).and_then(|at| name.get(at));
                        *is_authority &= expected == Some(byte);
                    }
                    Text::Value { is_authority: true } => *byte = if is_huffman { HUFFMAN_X } else { X },
                    Text::Value { is_authority: false } => {}
                }
                Self::in_text(of, left - 1, is_huffman)
            }
        }
    }

    /// Begins a number in the lowest `bits` of a byte (RFC 7541, section 5.1).
    fn number(byte: u8, bits: u32, of: Number) -> Self {
        let all = (1 << bits) - 1;
        match usize::from(byte) & all {
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

    fn masked(bytes: &[u8], at_once: usize) -> Vec<u8> {
        let (mut mask, mut bytes) = (AuthorityMask::new(()), bytes.to_vec());
        bytes.chunks_mut(at_once).for_each(|chunk| mask.mask(chunk));
        bytes
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// A header block as clients write it: fields from the tables, a table size, and literals of
    /// every kind around the authority.
    fn block(name: &[u8], huffman: u8, authority: &[u8]) -> Vec<u8> {
        let long = [b'%'; 300];
        let length = u8::try_from(authority.len()).unwrap();
        [
            &[0x3f, 0xe1, 0x1f, 0x83, 0x86, 0x44, 2][..], // a size of two bytes more, POST, http, the path
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
    fn authority_is_masked_and_no_other_byte() {
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
                assert_eq!(masked(&connection(path), at_once), expected, "{at_once} at once");
            }
        }
    }

    #[test]
    fn http_1_is_not_changed() {
        let request = b"PRI / HTTP/1.1\r\nhost: %\r\n\r\n\0\0\x05\x01\0\0\0\0\x01\x41\x03%%%";
        assert_eq!(masked(request, 3), request);
    }

    fn garbage() -> Vec<u8> {
        (0..4000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
    }

    #[test]
    fn malformed_block_changes_no_byte_outside_of_blocks() {
        let flags = [0, PADDED, PRIORITY, PADDED | PRIORITY];
        let kinds = flags.into_iter().flat_map(|flags| [(HEADERS, flags), (CONTINUATION, 0), (0, flags)]);
        let garbage = garbage();
        let frames: Vec<_> =
            garbage.chunks(100).zip(kinds.cycle()).map(|(n, (kind, flags))| frame(kind, flags, n)).collect();
        let connection = [PREFACE.to_vec(), frames.concat()].concat();
        let masked = masked(&connection, 5);
        assert_ne!(masked, connection, "there is an authority by chance");
        let mut rest = masked.strip_prefix(PREFACE).unwrap();
        for frame in frames {
            let (is, after) = rest.split_at(frame.len());
            let unchanged = if matches!(frame[3], HEADERS | CONTINUATION) { HEAD } else { frame.len() };
            assert_eq!(is[..unchanged], frame[..unchanged]);
            assert!(is.iter().zip(&frame).all(|(is, was)| is == was || [X, HUFFMAN_X].contains(is)));
            rest = after;
        }
    }

    #[test]
    fn malformed_frames_cause_no_panic() {
        let mut bytes = PREFACE.to_vec();
        bytes.extend(frame(HEADERS, PADDED, &[]));
        bytes.extend(frame(HEADERS, PADDED | PRIORITY, &[0xff, 0xff]));
        bytes.extend(frame(
            HEADERS,
            0,
            &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
        ));
        bytes.extend(garbage());
        masked(&bytes, 5);
    }
}
