//! The blocks of a PEM file, of whatever line width (RFC 7468 section 2 asks parsers to be lenient). What they hold is
//! not looked at here.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use zeroize::Zeroizing;

/// A block of a PEM file, from its BEGIN line to its END line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Block<'a> {
    pub(super) label: &'a str,
    pub(super) text: &'a str,
}

impl Block<'_> {
    /// What is in it. `None`: it is not Base64.
    pub(super) fn decode(&self) -> Option<Zeroizing<Vec<u8>>> {
        let body = self.text.strip_prefix(BEGIN)?.strip_prefix(self.label)?.strip_prefix(DASHES)?;
        let body = body.split(DASHES).next()?;
        // With room for all of it from the start, so that no copy stays behind.
        let mut base64 = Zeroizing::new(Vec::with_capacity(body.len()));
        base64.extend(body.bytes().filter(|octet| !octet.is_ascii_whitespace()));
        let mut der = Zeroizing::new(vec![0; base64.len()]);
        let length = BASE64.decode_slice(&*base64, &mut der).ok()?;
        der.truncate(length);
        Some(der)
    }
}

/// A block that begins and does not end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Torn;

/// The blocks of a text, in order. What stands between them is passed over.
pub(super) fn blocks(text: &str) -> impl Iterator<Item = Result<Block<'_>, Torn>> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest.take()?;
        let (before, from) = text.split_once(BEGIN)?;
        let block = block(text, before.len(), from);
        if let Some((_, after)) = block {
            rest = Some(after);
        }
        Some(block.map(|(block, _)| block).ok_or(Torn))
    })
}

const BEGIN: &str = "-----BEGIN ";
const DASHES: &str = "-----";

/// The block of `text` that begins at `start`, where `label_on` is what follows its BEGIN; and what comes after it.
fn block<'a>(text: &'a str, start: usize, label_on: &'a str) -> Option<(Block<'a>, &'a str)> {
    let (label, body) = label_on.split_once(DASHES)?;
    let end = format!("-----END {label}{DASHES}");
    let stop = text.len() - body.len() + body.find(&end)? + end.len();
    Some((Block { label, text: text.get(start..stop)? }, text.get(stop..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_blocks_and_notices_a_torn_one() {
        let one = "-----BEGIN A B-----\nxx\n-----END A B-----";
        let other = "-----BEGIN C-----\n-----END C-----";
        let text = format!("before\n{one}\nbetween{other}\n-----BEGIN D-----\n-----END C-----\n");
        let found: Vec<_> = blocks(&text).collect();
        let expected =
            [Ok(Block { label: "A B", text: one }), Ok(Block { label: "C", text: other }), Err(Torn)];
        assert_eq!(found, expected);
        assert_eq!(blocks("no block").next(), None);
    }

    #[test]
    fn the_width_of_the_lines_does_not_matter() {
        for body in ["AQID\nBAUG", "AQIDBAUG", "AQ\r\nID\r\nBA\r\nUG", " AQIDBAUG \n\n"] {
            let text = format!("-----BEGIN A-----\n{body}\n-----END A-----");
            let block = blocks(&text).next().unwrap().unwrap();
            assert_eq!(block.decode().unwrap().as_slice(), [1, 2, 3, 4, 5, 6], "{body:?}");
        }
        for body in ["AQID!AUG", "AQI", "AQID=", "AQIDBA-_"] {
            let text = format!("-----BEGIN A-----\n{body}\n-----END A-----");
            assert_eq!(blocks(&text).next().unwrap().unwrap().decode(), None, "{body:?}");
        }
    }
}
