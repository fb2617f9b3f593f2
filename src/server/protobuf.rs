//! The part of the protobuf wire format that the messages of these services need: length-delimited
//! fields are written, and one of them is read
//! (<https://protobuf.dev/programming-guides/encoding/>).

use zeroize::Zeroizing;

/// An encoded message, or the content of one. Wiped when dropped: it may contain a key.
pub(super) type Message = Zeroizing<Vec<u8>>;

/// Encodes a message of `fields`, each a field number (1 to 15) and its content.
pub(super) fn message(fields: &[(u8, &[u8])]) -> Message {
    let length = fields.iter().map(|(_, content)| 1 + MAX_VARINT + content.len()).sum();
    let mut message = Zeroizing::new(Vec::with_capacity(length)); // never grows: no copy is left in memory
    for (number, content) in fields {
        message.push(number << 3 | LENGTH_DELIMITED);
        write_varint(content.len(), &mut message);
        message.extend_from_slice(content);
    }
    message
}

/// Reads the string field `number` of a message: the last one where it is repeated, empty where it
/// is absent. `None` if the message is malformed.
pub(super) fn string_field(mut message: &[u8], number: u64) -> Option<&str> {
    let mut found: &[u8] = b"";
    while !message.is_empty() {
        let key = read_varint(&mut message)?;
        let content = match (key & 0b111) as u8 {
            VARINT => read_varint(&mut message).map(|_| &b""[..]),
            FIXED_64 => take(&mut message, 8),
            LENGTH_DELIMITED => {
                let length = usize::try_from(read_varint(&mut message)?).ok()?;
                take(&mut message, length)
            }
            FIXED_32 => take(&mut message, 4),
            _ => None,
        }?;
        if key == number << 3 | u64::from(LENGTH_DELIMITED) {
            found = content;
        }
    }
    std::str::from_utf8(found).ok()
}

const VARINT: u8 = 0;
const FIXED_64: u8 = 1;
const LENGTH_DELIMITED: u8 = 2;
const FIXED_32: u8 = 5;
const MAX_VARINT: usize = 10;

/// Writes seven bits per byte, the lowest first; the eighth says that more follow.
fn write_varint(mut number: usize, message: &mut Vec<u8>) {
    while number > 0x7f {
        message.push(number as u8 | 0x80);
        number >>= 7;
    }
    message.push(number as u8);
}

fn read_varint(message: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for position in 0..MAX_VARINT {
        let byte = *take(message, 1)?.first()?;
        number |= u64::from(byte & 0x7f) << (7 * position);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn take<'a>(message: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = message.split_at_checked(length)?;
    *message = rest;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_encoded_as_in_protobuf() {
        assert_eq!(message(&[(1, b"abc"), (4, b"")]).as_slice(), b"\x0a\x03abc\x22\x00");
        for (length, written) in
            [(127, &[0x7f][..]), (128, &[0x80, 1]), (300, &[0xac, 2]), (16_384, &[0x80, 0x80, 1])]
        {
            let message = message(&[(2, &vec![7; length])]);
            assert_eq!(message[0], 0x12);
            assert_eq!(&message[1..=written.len()], written, "{length}");
            assert_eq!(message.len(), 1 + written.len() + length);
        }
    }

    #[test]
    fn string_fields_are_read_among_others() {
        assert_eq!(string_field(b"", 1), Some(""));
        assert_eq!(string_field(&message(&[(1, b"abc")]), 1), Some("abc"));
        assert_eq!(string_field(&message(&[(2, b"abc")]), 1), Some(""));
        assert_eq!(string_field(&message(&[(1, b"a"), (2, b"b"), (1, b"c")]), 1), Some("c"));
        let others = b"\x10\xff\xff\x03\x19--------\x25----\x0a\x01x";
        assert_eq!(string_field(others, 1), Some("x"));
        for malformed in [
            &b"\x0a"[..],
            b"\x0a\x02x",
            b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01x",
            b"\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x0b",
            b"\x19---",
            b"\x25---",
            b"\x0a\x01\xff",
        ] {
            assert_eq!(string_field(malformed, 1), None, "{malformed:?}");
        }
    }
}
