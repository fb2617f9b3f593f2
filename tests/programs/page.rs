//! Blocks of documents; those of docs/using-the-identity.md if no other is named.

const PAGE: &str = include_str!("../../docs/using-the-identity.md");

/// Content of the block with this label, such as `sh curl`.
pub(crate) fn block(label: &str) -> String {
    block_of(PAGE, label)
}

/// The same, of another page.
pub(crate) fn block_of(page: &str, label: &str) -> String {
    let (mut text, mut inside) = (String::new(), None);
    for line in page.lines() {
        match (line.strip_prefix("```"), inside) {
            (Some(begins), None) => inside = Some(begins == label),
            (Some(_), Some(_)) => inside = None,
            (None, Some(true)) => text.extend([line, "\n"]),
            (None, _) => (),
        }
    }
    assert!(!text.is_empty(), "the document has no block \"{label}\"");
    text
}
