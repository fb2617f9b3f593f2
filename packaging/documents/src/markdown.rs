//! Markdown to roff, as far as `docs/configuration.md` uses it: headings, paragraphs, tables, code,
//! and links.

use std::mem;

use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

/// Renders a document without its title. A table becomes a list: its first column the terms, its
/// last their explanation.
pub(crate) fn render(document: &str, roff: &mut Roff) {
    let mut paragraph = String::new();
    let mut lines = document.lines().peekable();
    while let Some(line) = lines.next() {
        let part_of_paragraph = !line.is_empty() && !line.starts_with(['#', '|']) && !line.starts_with("```");
        if part_of_paragraph {
            paragraph.push_str(line);
            paragraph.push(' ');
            continue;
        }
        flush(&mut paragraph, roff);
        if line.starts_with("```") {
            let block: Vec<&str> = lines.by_ref().take_while(|line| !line.starts_with("```")).collect();
            code(&block.join("\n"), roff);
        } else if let Some(heading) = line.strip_prefix("## ") {
            roff.control("SH", [heading.to_uppercase().as_str()]);
        } else if line.starts_with('|') {
            lines.next(); // the rule below the head
            let mut rows = Vec::new();
            while let Some(row) = lines.next_if(|line| line.starts_with('|')) {
                rows.push(row);
            }
            table(line, &rows, roff);
        }
    }
    flush(&mut paragraph, roff);
}

/// A block of code, indented.
pub(crate) fn code(text: &str, roff: &mut Roff) {
    roff.control("PP", []);
    roff.control("EX", []);
    for line in text.lines() {
        roff.text([roman(format!("    {line}"))]);
    }
    roff.control("EE", []);
}

fn flush(paragraph: &mut String, roff: &mut Roff) {
    let text = mem::take(paragraph);
    if !text.is_empty() {
        roff.control("PP", []);
        roff.text(inline(text.trim_end()));
    }
}

fn table(head: &str, rows: &[&str], roff: &mut Roff) {
    let has_defaults = cells(head).get(1) == Some(&"default");
    if has_defaults {
        roff.control("SH", ["KEYS"]);
    }
    for row in rows {
        let cells = cells(row);
        let (Some(term), Some(meaning)) = (cells.first(), cells.last()) else { continue };
        roff.control("TP", []);
        roff.text(inline(term));
        let mut text = inline(meaning);
        if let Some(default) = cells.get(1).filter(|default| has_defaults && **default != "–") {
            text.push(roman(". Default: "));
            text.extend(inline(default));
        }
        roff.text(text);
    }
}

fn cells(row: &str) -> Vec<&str> {
    row.trim_matches('|').split(" | ").map(str::trim).collect()
}

/// `code` in bold, **strong** in italics, and links as their text.
fn inline(text: &str) -> Vec<Inline> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['`', '*', '[']) {
        let (before, from) = rest.split_at(at);
        let found = if let Some((inner, after)) = between(from, "`", "`") {
            Some((bold(inner), after))
        } else if let Some((inner, after)) = between(from, "**", "**") {
            Some((italic(inner), after))
        } else if let Some((inner, after)) = between(from, "[", "](") {
            after.split_once(')').map(|(_, after)| (roman(inner), after))
        } else {
            None
        };
        match found {
            Some((inner, after)) => {
                out.extend([roman(before), inner]);
                rest = after;
            }
            None => {
                let (sign, after) = from.split_at(1); // each of them is one byte
                out.extend([roman(before), roman(sign)]);
                rest = after;
            }
        }
    }
    out.push(roman(rest));
    out
}

fn between<'a>(text: &'a str, open: &str, close: &str) -> Option<(&'a str, &'a str)> {
    text.strip_prefix(open)?.split_once(close)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_become_lists_and_code_stays_as_it_is() {
        let mut roff = Roff::new();
        render(
            "# Title\n\nSome `key = \"*\"` of\n**this** [page](x.md) [not] one.\n\n| key | default | meaning |\n| --- | --- | --- |\n\
             | `a.b` | `5s` | how long |\n| `c` | – | what |\n\n## Next one\n\n```sh\nls -l\n.x\n```\n",
            &mut roff,
        );
        assert_eq!(
            roff.render().split_once(".PP").map(|(_, text)| text),
            Some(
                "\nSome \\fBkey = \"*\"\\fR of \\fIthis\\fR page [not] one.\n.SH KEYS\n.TP\n\\fBa.b\\fR\nhow long. Default: \\fB5s\\fR\n\
             .TP\n\\fBc\\fR\nwhat\n.SH \"NEXT ONE\"\n.PP\n.EX\n    ls \\-l\n    .x\n.EE\n"
            )
        );
    }
}
