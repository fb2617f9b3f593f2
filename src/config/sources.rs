//! Files of the configuration: the main file and its drop-ins.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::raw::{self, Overlay as _};
use super::{ConfigError, MAX_REASON, Problem};
use crate::hint::Reason;
use crate::platform::{access, files};
use miaf_spiffe::text::Excerpt;

/// Limit on the bytes of all files together.
const MAX_TEXT: usize = 1024 * 1024;
const MAX_DROP_INS: usize = 256;
/// Limit on the bytes of a file that is salvaged: a parser that continues after each error does
/// much work for little input.
const MAX_SALVAGED: usize = 64 * 1024;
/// Mark of some editors at the beginning of a UTF-8 file.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// Directory of the drop-ins: `config.d` for `config.toml`.
pub fn drop_in_directory(file: &Path) -> PathBuf {
    file.with_extension("d")
}

/// Texts of all files, concatenated in `text`: a position in it identifies file and line.
pub(super) struct Sources {
    text: String,
    /// Each file, and its start in `text`.
    files: Vec<(PathBuf, usize)>,
}

impl Sources {
    /// Creates the sources of one file.
    pub(super) fn one(file: &Path, text: &str) -> Self {
        let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
        Self { text: text.to_owned(), files: vec![(file.to_owned(), 0)] }
    }

    /// Reads the file, which need not exist, and its drop-ins in the order of their names.
    pub(super) fn read(file: &Path) -> Result<Self, ConfigError> {
        let mut sources = Self { text: String::new(), files: Vec::new() };
        match sources.add(file) {
            // A dangling link is no missing file: its content would be missed.
            Err(e) if e.is_missing() && fs::symlink_metadata(file).is_err() => {}
            added => added?,
        }
        let directory = drop_in_directory(file);
        for drop_in in drop_ins(&directory).map_err(|e| unreadable(&directory, e))? {
            sources.add(&drop_in)?;
        }
        Ok(sources)
    }

    fn add(&mut self, file: &Path) -> Result<(), ConfigError> {
        let content = files::read_at_most(file, MAX_TEXT as u64).map_err(|e| unreadable(file, e))?;
        let text = str::from_utf8(&content).map_err(|e| not_utf8(file, &content, e.valid_up_to()))?;
        let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
        self.files.push((file.to_owned(), self.text.len()));
        self.text.push_str(text);
        self.text.push('\n');
        if self.text.len() > MAX_TEXT {
            return Err(unreadable(file, io::Error::other("the configuration is larger than 1 MiB")));
        }
        Ok(())
    }

    /// Parses all files, each overlaid on those before it.
    pub(super) fn parse(&self) -> Result<raw::File, ConfigError> {
        let mut whole = raw::File::default();
        let ends = self.files.iter().skip(1).map(|(_, start)| *start).chain([self.text.len()]);
        for ((file, start), end) in self.files.iter().zip(ends) {
            // Blanks in place of the files before it, so that every span is one of the whole text.
            let text = " ".repeat(*start) + self.text.get(*start..end).unwrap_or_default();
            let parsed = toml::from_str(&text).map_err(|e| ConfigError {
                file: file.clone(),
                line: e.span().map(|span| self.line(*start, span.start.min(end.saturating_sub(1)))),
                problem: Problem::Syntax(Excerpt::of(in_words(e.message()), MAX_REASON)),
                hint: None,
            })?;
            whole.overlay(parsed);
        }
        Ok(whole)
    }

    /// File and line of a span of the whole text.
    pub(super) fn place_of(&self, span: &Range<usize>) -> (&Path, usize) {
        let file = self.files.iter().rfind(|(_, start)| *start <= span.start);
        file.map_or((Path::new(""), 0), |(file, start)| (file, self.line(*start, span.start)))
    }

    fn line(&self, start: usize, at: usize) -> usize {
        let before = self.text.as_bytes().get(start..at).unwrap_or_default();
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }
}

/// Rewrites the parser's message without Rust's names of types, and without its guess at the
/// meaning of a string without quotes.
fn in_words(message: &str) -> Cow<'_, str> {
    const GUESSES: [&str; 4] =
        ["invalid boolean, ", "invalid float, ", "invalid fraction, ", "string values must be quoted, "];
    if GUESSES.iter().any(|guess| message.starts_with(guess)) {
        return "a value is missing, or it is neither a number nor true or false; a string is in quotes"
            .into();
    }
    let Some((found, expected)) = message.rsplit_once(", expected ") else { return message.into() };
    if !found.starts_with("invalid ") {
        return message.into();
    }
    let expected = match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number",
        "f64" => "a number",
        "a boolean" => "true or false, without quotes",
        "a string" | "path string" => "a string in quotes",
        // The one list of tables that there is.
        "a sequence" if found == "invalid type: map" => "a list of tables: [[identity]], in double brackets",
        "a sequence" => "a list, as in [\"a\", \"b\"]",
        "an array of length 2" => "a list of two",
        of_rust if of_rust.starts_with("struct ") => "a table",
        _ => return message.into(),
    };
    format!("{found}, expected {expected}").into()
}

/// The readable part of one file.
pub(super) struct ReadableText {
    pub(super) text: String,
    /// The lines of the whole file that seem to set `state_dir`.
    pub(super) state_dir_lines: usize,
}

/// The readable parts of the files, in their order.
pub(super) struct Readable {
    pub(super) texts: Vec<ReadableText>,
    /// Whether nothing is missing.
    pub(super) is_whole: bool,
}

impl Readable {
    pub(super) fn of(file: &Path) -> Self {
        let drop_ins = drop_ins(&drop_in_directory(file));
        let mut readable = Self { texts: Vec::new(), is_whole: drop_ins.is_ok() };
        for file in [file.to_owned()].into_iter().chain(drop_ins.unwrap_or_default()) {
            match files::read_at_most(&file, MAX_TEXT as u64) {
                Ok(content) => readable.add(&content),
                Err(_) => readable.is_whole = false,
            }
        }
        readable
    }

    /// Creates it from one file of this content.
    #[cfg(any(test, fuzzing))]
    pub(super) fn of_one(content: &[u8]) -> Self {
        let mut readable = Self { texts: Vec::new(), is_whole: true };
        readable.add(content);
        readable
    }

    fn add(&mut self, content: &[u8]) {
        let begin = content.get(..MAX_SALVAGED).unwrap_or(content);
        let text = String::from_utf8_lossy(begin);
        self.is_whole &= begin.len() == content.len() && str::from_utf8(begin).is_ok();
        let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&text).to_owned();
        self.texts.push(ReadableText { text, state_dir_lines: lines_with("state_dir", content) });
    }
}

/// Number of lines with `key` as a word, whatever else is wrong with them; without comments and
/// paths.
fn lines_with(key: &str, content: &[u8]) -> usize {
    let is_of_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '/' | '.');
    let is_word = |line: &str, at: usize| {
        let before = line.get(..at).and_then(|before| before.chars().next_back());
        let after = line.get(at + key.len()..).and_then(|after| after.chars().next());
        !before.is_some_and(is_of_word) && !after.is_some_and(is_of_word)
    };
    let lines = content.split(|byte| matches!(byte, b'\n' | b'\r'));
    let holds = |line: &&[u8]| {
        // UTF-16 of such a word is UTF-8 with a zero after each letter.
        let line: Vec<u8> = line.iter().copied().filter(|byte| *byte != 0).collect();
        let line = String::from_utf8_lossy(&line);
        let line = line.split('#').next().unwrap_or_default();
        line.match_indices(key).any(|(at, _)| is_word(line, at))
    };
    lines.filter(holds).count()
}

fn not_utf8(file: &Path, content: &[u8], at: usize) -> ConfigError {
    let before = content.get(..at).unwrap_or_default();
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let what = match content {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "it is UTF-16",
        _ => "it is not UTF-8",
    };
    ConfigError {
        file: file.into(),
        line: Some(line),
        problem: Problem::Syntax(Excerpt::of(what, MAX_REASON)),
        hint: Some("Save it as UTF-8".into()),
    }
}

fn unreadable(file: &Path, e: io::Error) -> ConfigError {
    let Reason { what: why, hint } = access::unreadable(file, &e);
    ConfigError { file: file.into(), line: None, problem: Problem::Unreadable { kind: e.kind(), why }, hint }
}

/// Lists the drop-ins: `*.toml`, sorted by name. Hidden ones are an editor's.
fn drop_ins(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let is_drop_in = |name: &OsStr| {
        let name = name.as_encoded_bytes();
        name.ends_with(b".toml") && !name.starts_with(b".")
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        if is_drop_in(&entry.file_name()) {
            files.push(entry.path());
        }
    }
    if files.len() > MAX_DROP_INS {
        return Err(io::Error::other(format!("it has {} drop-ins; {MAX_DROP_INS} are allowed", files.len())));
    }
    files.sort();
    Ok(files)
}
