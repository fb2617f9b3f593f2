//! The blocks of a PEM file. What they hold is not looked at here.

/// A block of a PEM file, from its BEGIN line to its END line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Block<'a> {
    pub(super) label: &'a str,
    pub(super) text: &'a str,
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
}
