//! docs/using-the-identity.md, and its blocks.

const PAGE: &str = include_str!("../../docs/using-the-identity.md");

/// Content of the block with this label, such as `sh curl`.
pub(crate) fn block(label: &str) -> String {
    let (mut text, mut inside) = (String::new(), None);
    for line in PAGE.lines() {
        match (line.strip_prefix("```"), inside) {
            (Some(begins), None) => inside = Some(begins == label),
            (Some(_), Some(_)) => inside = None,
            (None, Some(true)) => text.extend([line, "\n"]),
            (None, _) => (),
        }
    }
    assert!(!text.is_empty(), "docs/using-the-identity.md has no block \"{label}\"");
    text
}
