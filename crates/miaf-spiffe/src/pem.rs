//! The one reader and writer of PEM (RFC 7468), which people and programs make in many forms.
//!
//! Lenient about everything that leaves no doubt: any line ends and line width, indentation, a byte
//! order mark, UTF-16, text of any encoding around a block, an END and a BEGIN on one line. Strict
//! about the rest: a boundary that is no exact one, a block without an end, and a byte that is not
//! Base64 are errors that name the line. No block is passed over: each is returned, is an error, or
//! is reported as commented out.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use der::pem::LineEnding;
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::text::Excerpt;

/// The blocks of a PEM text, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pem {
    /// The decoded blocks, each between a BEGIN and its END.
    pub blocks: Vec<Block>,
    /// Lines, from 1, of BEGINs in comments (`#`, `;`), whose blocks are not read.
    pub commented_out: Vec<usize>,
}

/// One block.
#[derive(PartialEq, Eq)]
pub struct Block {
    /// Line of its BEGIN, from 1.
    pub line: usize,
    /// What it says that it is, such as `CERTIFICATE`.
    pub label: Label,
    /// Encrypted as RFC 1421 has it (`Proc-Type: 4,ENCRYPTED`): `der` is then no DER.
    pub encrypted: bool,
    /// The content. Wiped when dropped, since it may be a private key.
    pub der: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({} in line {})", self.label, self.line)
    }
}

/// The label of a block, single spaces between its words. Displays as an [`Excerpt`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label(String);

impl Label {
    fn of(written: &[u8]) -> Self {
        let text = String::from_utf8_lossy(written.get(..written.len().min(MAX_LABEL)).unwrap_or_default());
        Self(text.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// Whether it is that of an X.509 certificate alone. `X509 CERTIFICATE` is an older spelling
    /// that OpenSSL reads too (RFC 7468 section 5.3).
    #[must_use]
    pub fn is_certificate(&self) -> bool {
        matches!(&*self.0, "CERTIFICATE" | "X509 CERTIFICATE" | "X.509 CERTIFICATE")
    }

    /// Whether it is that of a private key in any form, or of what belongs to one.
    #[must_use]
    pub fn is_of_a_private_key(&self) -> bool {
        self.0.ends_with("PRIVATE KEY") || self.0 == "EC PARAMETERS"
    }
}

impl Deref for Label {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Excerpt::of(&self.0, LABEL_SHOWN).fmt(f)
    }
}

/// Bytes.
const MAX_LABEL: usize = 256;
const LABEL_SHOWN: usize = 64;

/// Why a text cannot be read as PEM. Displays what is wrong with it; [`hint`](Self::hint) says what
/// to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PemError {
    /// The line that it is about, from 1; of the whole text if `None`.
    pub line: Option<usize>,
    /// The fault.
    pub kind: PemErrorKind,
}

/// The fault of a PEM text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PemErrorKind {
    /// A line that is meant to begin or end a block and does not, to the letter.
    Boundary {
        /// The line.
        found: Excerpt,
        /// What it should be.
        meant: Excerpt,
    },
    /// A block without an END, and the line of the next block's BEGIN.
    NoEnd(Label, Option<usize>),
    /// A block that ends with another label, in this line.
    OtherEnd(Label, Label, usize),
    /// An END without a BEGIN before it.
    NoBegin(Label),
    /// A character that is not Base64, in a block with this label.
    NotBase64(Label, Excerpt),
    /// Base64 of which characters are missing or too many.
    Incomplete(Label),
    /// A block of nothing.
    Empty(Label),
    /// A certificate with OpenSSL's trust settings.
    Trusted,
    /// A block that may hold certificates, in another form than the agent reads.
    NotPlain(Label),
    /// No certificate, and what there is in its place.
    NoCertificate(Content),
}

/// The content of a text without the expected block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing at all.
    Nothing,
    /// Text without any PEM block.
    Text,
    /// A block in a comment, in this line.
    Comment(usize),
    /// Blocks, of which this is the first one's label.
    Block(Label),
    /// Binary data that begins as DER or BER does.
    Der,
}

impl fmt::Display for PemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        self.kind.fmt(f)
    }
}

impl std::error::Error for PemError {}

impl PemError {
    /// What to do, as an imperative without a full stop at its end.
    #[must_use]
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        self.kind.hint()
    }
}

impl fmt::Display for PemErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boundary { found, .. } => {
                write!(f, "\"{found}\" is not how a PEM block begins or ends")
            }
            Self::NoEnd(label, None) => {
                write!(f, "the {label} that begins here has no END line: the text is cut off")
            }
            Self::NoEnd(label, Some(next)) => write!(
                f,
                "the {label} that begins here has no END line, and the next block begins in line {next}"
            ),
            Self::OtherEnd(label, end, line) => {
                write!(f, "the {label} that begins here is ended as {end} in line {line}")
            }
            Self::NoBegin(label) => write!(f, "here ends a {label} that does not begin"),
            Self::NotBase64(label, found) if is_escape(found) => {
                write!(f, "the {label} has its line breaks written out as a backslash and an n")
            }
            Self::NotBase64(label, found) => write!(f, "\"{found}\" in the {label} is not Base64"),
            Self::Incomplete(label) => {
                write!(f, "the {label} that begins here has characters too few or too many to be Base64")
            }
            Self::Empty(label) => write!(f, "the {label} that begins here has nothing in it"),
            Self::Trusted => f.write_str("a TRUSTED CERTIFICATE has trust settings that only OpenSSL knows"),
            Self::NotPlain(label) => write!(f, "a {label} is not read"),
            Self::NoCertificate(content) => write!(f, "it holds no PEM certificate: {content}"),
        }
    }
}

impl PemErrorKind {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let fixed = match self {
            Self::Boundary { meant, .. } => return Some(format!("Write it as {meant}").into()),
            Self::NoBegin(label) => {
                return Some(format!("Write -----BEGIN {label}----- in the line before its content").into());
            }
            Self::OtherEnd(..) => "Write the same in both lines",
            Self::NotBase64(_, found) if is_escape(found) => "Put real line breaks there",
            Self::NoEnd(..) | Self::NotBase64(..) | Self::Incomplete(_) | Self::Empty(_) => {
                "Copy the file again"
            }
            Self::Trusted => "Write the certificate alone with: openssl x509 -in FILE -out NEWFILE",
            Self::NotPlain(_) => {
                "Write its certificates as CERTIFICATE blocks (for PKCS7: openssl pkcs7 -print_certs \
                 -in FILE -out NEWFILE)"
            }
            Self::NoCertificate(Content::Der) => {
                "Convert it with: openssl x509 -inform DER -in FILE -out NEWFILE (a PKCS #12, .p12 \
                 or .pfx, with: openssl pkcs12 -nokeys -in FILE -out NEWFILE)"
            }
            Self::NoCertificate(_) => return None,
        };
        Some(fixed.into())
    }
}

/// Whether this character stands for a line break that was written as `\n`.
fn is_escape(found: &Excerpt) -> bool {
    &**found == "\\"
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("it is empty"),
            Self::Text => f.write_str("it has no -----BEGIN line"),
            Self::Comment(line) => write!(f, "the block in line {line} is in a comment"),
            Self::Block(label) => write!(f, "it has a {label}"),
            Self::Der => f.write_str("it is binary (DER) and not PEM"),
        }
    }
}

/// Reads all blocks of a text.
///
/// # Errors
/// [`PemError`]: the first line that is neither text around blocks nor a sound part of one.
pub fn read(content: &[u8]) -> Result<Pem, PemError> {
    let text = Text::of(content);
    let mut pem = Pem::default();
    let mut open: Option<Boundary<'_>> = None;
    for boundary in boundaries(&text, &mut pem.commented_out) {
        if let Some(meant) = boundary.meant() {
            let found = Excerpt::of_bytes(boundary.written, LINE_SHOWN);
            return Err(boundary.wrong(PemErrorKind::Boundary { found, meant }));
        }
        open = match (open.take(), boundary.word) {
            (None, Word::Begin) => Some(boundary),
            (None, Word::End) => return Err(boundary.wrong(PemErrorKind::NoBegin(boundary.label()))),
            (Some(begin), Word::Begin) => {
                return Err(begin.wrong(PemErrorKind::NoEnd(begin.label(), Some(boundary.line))));
            }
            (Some(begin), Word::End) if begin.label() != boundary.label() => {
                let kind = PemErrorKind::OtherEnd(begin.label(), boundary.label(), boundary.line);
                return Err(begin.wrong(kind));
            }
            (Some(begin), Word::End) => {
                let body = text.get(begin.after..boundary.start).unwrap_or_default();
                pem.blocks.push(block(&begin, body)?);
                None
            }
        };
    }
    match open {
        Some(begin) => Err(begin.wrong(PemErrorKind::NoEnd(begin.label(), None))),
        None => Ok(pem),
    }
}

/// A block with this label and content, in lines of 64 characters that end with LF (RFC 7468). The
/// encoding takes constant time and leaves no copy behind, since the content may be a private key.
/// `None`: the label is none, or the content too long for any text.
#[must_use]
pub fn encode(label: &str, der: &[u8]) -> Option<Zeroizing<String>> {
    der::pem::encode_string(label, LineEnding::LF, der).ok().map(Zeroizing::new)
}

/// The certificates of a PEM text.
#[derive(Debug, PartialEq, Eq)]
pub struct Certificates {
    /// Each with the line of its BEGIN: at least one. Whether it is a certificate inside is not
    /// checked.
    pub certificates: Vec<(usize, CertificateDer<'static>)>,
    /// Blocks that hold no certificate, with the line of their BEGIN.
    pub others: Vec<(usize, Label)>,
    /// As [`Pem::commented_out`].
    pub commented_out: Vec<usize>,
}

impl Certificates {
    /// The parts of the text that are not used, for a warning.
    #[must_use]
    pub fn unused(&self) -> Option<String> {
        let others = self.others.iter().map(|(line, label)| format!("line {line}: {label}"));
        let commented = self.commented_out.iter().map(|line| format!("line {line}: a block in a comment"));
        let mut all = others.chain(commented);
        let mut unused = all.by_ref().take(UNUSED_SHOWN).collect::<Vec<_>>().join(", ");
        if all.next().is_some() {
            unused.push_str(", …");
        }
        (!unused.is_empty()).then_some(unused)
    }
}

const UNUSED_SHOWN: usize = 8;

/// Reads the certificates of a text. Keys and other blocks may stand in it too.
///
/// # Errors
/// As [`read`]; no certificate at all, and certificates in a form that is not read.
pub fn certificates(content: &[u8]) -> Result<Certificates, PemError> {
    let Pem { blocks, commented_out } = read(content)?;
    let mut certificates = Vec::new();
    let mut others = Vec::new();
    for Block { line, label, der, .. } in blocks {
        let wrong = |kind| PemError { line: Some(line), kind };
        if label.is_certificate() {
            certificates.push((line, CertificateDer::from(der.to_vec())));
        } else if &*label == "TRUSTED CERTIFICATE" {
            return Err(wrong(PemErrorKind::Trusted));
        } else if may_hold_certificates(&label) {
            return Err(wrong(PemErrorKind::NotPlain(label)));
        } else {
            others.push((line, label));
        }
    }
    if certificates.is_empty() {
        let instead = others
            .into_iter()
            .next()
            .map_or_else(|| instead_of_blocks(content, &commented_out), |(_, label)| Content::Block(label));
        return Err(PemError { line: None, kind: PemErrorKind::NoCertificate(instead) });
    }
    Ok(Certificates { certificates, others, commented_out })
}

fn may_hold_certificates(label: &str) -> bool {
    let label = label.to_ascii_uppercase();
    let is_request = label.ends_with("REQUEST");
    (label.contains("CERT") && !is_request) || label.contains("PKCS") || label == "CMS"
}

/// Determines the content of a text without any block.
#[must_use]
pub fn instead_of_blocks(content: &[u8], commented_out: &[usize]) -> Content {
    match content {
        _ if !commented_out.is_empty() => {
            Content::Comment(commented_out.first().copied().unwrap_or_default())
        }
        // A SEQUENCE with a length of more than 127 bytes, or of an unknown one.
        [0x30, 0x80..=0x84, ..] => Content::Der,
        _ if content.iter().all(u8::is_ascii_whitespace) => Content::Nothing,
        _ => Content::Text,
    }
}

/// The bytes of a text without NULs: so ASCII in UTF-16 and UTF-32 is ASCII. Wiped when dropped, if
/// it is a copy.
enum Text<'a> {
    Given(&'a [u8]),
    Copied(Zeroizing<Vec<u8>>),
}

impl<'a> Text<'a> {
    fn of(content: &'a [u8]) -> Self {
        if !content.contains(&0) {
            return Self::Given(content);
        }
        // With room for all of it from the start, so that no copy stays behind.
        let mut copied = Zeroizing::new(Vec::with_capacity(content.len()));
        copied.extend(content.iter().filter(|byte| **byte != 0));
        Self::Copied(copied)
    }
}

impl Deref for Text<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Given(given) => given,
            Self::Copied(copied) => copied,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Begin,
    End,
}

impl Word {
    fn as_str(self) -> &'static str {
        match self {
            Self::Begin => "BEGIN",
            Self::End => "END",
        }
    }
}

/// A line, or a part of one, that begins or ends a block, or is meant to.
struct Boundary<'a> {
    line: usize,
    word: Word,
    /// Where its first dash is.
    start: usize,
    /// What follows its last dash.
    after: usize,
    /// From the first dash to the last.
    written: &'a [u8],
    /// Between the word and the last dashes.
    label: &'a [u8],
    is_exact: bool,
}

impl Boundary<'_> {
    fn label(&self) -> Label {
        Label::of(self.label)
    }

    /// How it has to be written, if it is not.
    fn meant(&self) -> Option<Excerpt> {
        if self.is_exact {
            return None;
        }
        let label = self.label().to_ascii_uppercase();
        let label = if label.is_empty() { "CERTIFICATE" } else { &label };
        Some(Excerpt::of(format_args!("-----{} {label}-----", self.word.as_str()), LINE_SHOWN))
    }

    fn wrong(&self, kind: PemErrorKind) -> PemError {
        PemError { line: Some(self.line), kind }
    }
}

const LINE_SHOWN: usize = 80;

/// All boundaries of a text, outside of comments.
fn boundaries<'a>(text: &'a [u8], commented_out: &mut Vec<usize>) -> Vec<Boundary<'a>> {
    let mut found: Vec<Boundary<'_>> = Vec::new();
    // Of a block whose BEGIN alone is in a comment, which is enough for OpenSSL to pass over it.
    let mut end_to_drop = None;
    for line in Lines::of(text) {
        let is_in_block = found.last().is_some_and(|before| before.word == Word::Begin);
        let is_comment = is_comment(line.text) && !is_in_block;
        for boundary in boundaries_in(&line) {
            let dropped = end_to_drop.take();
            if is_comment {
                if boundary.word == Word::Begin {
                    commented_out.push(boundary.line);
                    end_to_drop = Some(boundary.label());
                }
            } else if boundary.word == Word::Begin || dropped.is_none_or(|label| label != boundary.label()) {
                found.push(boundary);
            }
        }
    }
    found
}

fn is_comment(line: &[u8]) -> bool {
    // What a byte order mark looks like, in UTF-8 and in UTF-16, and blanks.
    let is_mark = |byte: &u8| matches!(byte, 0xef | 0xbb | 0xbf | 0xfe | 0xff) || byte.is_ascii_whitespace();
    let first = line.iter().find(|byte| !is_mark(byte));
    matches!(first, Some(b'#' | b';'))
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=')
}

/// One line without its end, LF, CRLF or CR.
struct Line<'a> {
    number: usize,
    /// Where it begins in the whole text.
    start: usize,
    text: &'a [u8],
}

struct Lines<'a> {
    text: &'a [u8],
    at: usize,
    number: usize,
}

impl<'a> Lines<'a> {
    fn of(text: &'a [u8]) -> Self {
        Self { text, at: 0, number: 0 }
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = Line<'a>;

    fn next(&mut self) -> Option<Line<'a>> {
        let rest = self.text.get(self.at..).filter(|rest| !rest.is_empty())?;
        let length = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')).unwrap_or(rest.len());
        let (line, end) = rest.split_at(length);
        let start = self.at;
        self.number += 1;
        self.at += length + if end.starts_with(b"\r\n") { 2 } else { 1 };
        Some(Line { number: self.number, start, text: line })
    }
}

/// A run of dashes.
struct Dashes {
    start: usize,
    end: usize,
    count: usize,
    /// All are the hyphen of ASCII: word processors make others of it.
    are_ascii: bool,
}

impl Dashes {
    /// The next run at or after `from`.
    fn next(line: &[u8], from: usize) -> Option<Self> {
        let rest = line.get(from..)?;
        let offset = (0..rest.len()).find(|at| rest.get(*at..).and_then(dash).is_some())?;
        let start = from + offset;
        let mut run = Self { start, end: start, count: 0, are_ascii: true };
        while let Some(length) = line.get(run.end..).and_then(dash) {
            run.end += length;
            run.count += 1;
            run.are_ascii &= length == 1;
        }
        Some(run)
    }

    /// The next of at least two: a label may have one (RFC 7468 section 3).
    fn next_of_two(line: &[u8], from: usize) -> Option<Self> {
        let mut from = from;
        loop {
            let run = Self::next(line, from)?;
            if run.count > 1 || !run.are_ascii {
                return Some(run);
            }
            from = run.end;
        }
    }
}

/// The beginning and the end of a boundary.
const DASHES: &[u8] = b"-----";

/// The length of the dash that a text begins with: ASCII, or U+2010 to U+2015, U+2212, U+FF0D.
fn dash(text: &[u8]) -> Option<usize> {
    match text {
        [b'-', ..] => Some(1),
        [0xe2, 0x80, 0x90..=0x95, ..] | [0xe2, 0x88, 0x92, ..] | [0xef, 0xbc, 0x8d, ..] => Some(3),
        _ => None,
    }
}

fn boundaries_in<'a>(line: &Line<'a>) -> Vec<Boundary<'a>> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(before) = Dashes::next(line.text, from) {
        let boundary = boundary(line, &before);
        from = match &boundary {
            // Its last dashes may be the first of the next.
            Some((_, behind)) => behind.as_ref().map_or(line.text.len(), |behind| behind.start),
            None => before.end,
        };
        found.extend(boundary.map(|(boundary, _)| boundary));
    }
    found
}

/// The boundary that begins with `before`, if anything there is meant to be one; and the dashes
/// behind it.
fn boundary<'a>(line: &Line<'a>, before: &Dashes) -> Option<(Boundary<'a>, Option<Dashes>)> {
    if before.count == 1 && before.are_ascii {
        return None; // with one, a line could make this read its rest again and again
    }
    let text = line.text;
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let blanks = text.get(before.end..)?.iter().take_while(|byte| is_blank(byte)).count();
    let word_at = before.end + blanks;
    let (word, written) = [Word::Begin, Word::End].into_iter().find_map(|word| {
        let written = text.get(word_at..word_at + word.as_str().len())?;
        written.eq_ignore_ascii_case(word.as_str().as_bytes()).then_some((word, written))
    })?;
    let label_at = word_at + written.len();
    let behind = Dashes::next_of_two(text, label_at);
    let label = text.get(label_at..behind.as_ref().map_or(text.len(), |behind| behind.start))?;
    let opens = text.get(before.start..before.end).is_some_and(|dashes| dashes.ends_with(DASHES));
    let closes = |behind: &Dashes| text.get(behind.start..).is_some_and(|rest| rest.starts_with(DASHES));
    let as_it_should_be = opens && written == word.as_str().as_bytes();
    let is_exact = as_it_should_be
        && label.first().is_some_and(is_blank)
        && is_label(label.trim_ascii())
        && behind.as_ref().is_some_and(closes);
    // Prose has dashes before such words, too: "--- end of the old certificates".
    let label_means_it = || {
        let label = Label::of(label).to_ascii_uppercase();
        ["CERT", "KEY", "CRL", "PKCS", "PARAM"].iter().any(|word| label.contains(word))
    };
    let looks_like_it = before.count > 3 || (!before.are_ascii && written == word.as_str().as_bytes());
    let is_meant = as_it_should_be || (looks_like_it && label_means_it());
    if !is_meant {
        return None;
    }
    let end = behind.as_ref().map_or(text.len(), |behind| behind.end);
    let boundary = Boundary {
        line: line.number,
        word,
        start: line.start + before.start,
        after: line.start + end,
        written: text.get(before.start..end)?,
        label: label.trim_ascii(),
        is_exact,
    };
    Some((boundary, behind))
}

/// RFC 7468 section 3, with any number of blanks between the words.
fn is_label(label: &[u8]) -> bool {
    let is_fine = |byte: &u8| byte.is_ascii_graphic() || matches!(byte, b' ' | b'\t');
    (1..=MAX_LABEL).contains(&label.len())
        && label.iter().all(is_fine)
        && !label.starts_with(b"-")
        && !label.ends_with(b"-")
}

/// Decodes what stands between `begin` and its END.
fn block(begin: &Boundary<'_>, body: &[u8]) -> Result<Block, PemError> {
    let label = begin.label();
    let headers = Headers::of(body);
    // With room for all of it from the start, so that no copy stays behind.
    let mut base64 = Zeroizing::new(Vec::with_capacity(body.len()));
    for line in Lines::of(body).skip(headers.lines) {
        for (at, byte) in line.text.iter().enumerate() {
            match byte {
                b' ' | b'\t' | 0x0b | 0x0c => {}
                byte if is_base64(*byte) => base64.push(*byte),
                _ => {
                    let found = first_character(line.text.get(at..).unwrap_or_default());
                    let kind = PemErrorKind::NotBase64(label, found);
                    return Err(PemError { line: Some(begin.line + line.number - 1), kind });
                }
            }
        }
    }
    let mut der = Zeroizing::new(vec![0; base64.len()]);
    let length = match BASE64.decode_slice(&*base64, &mut der) {
        Ok(0) => return Err(begin.wrong(PemErrorKind::Empty(label))),
        Ok(length) => length,
        Err(_) => return Err(begin.wrong(PemErrorKind::Incomplete(label))),
    };
    der.truncate(length);
    Ok(Block { line: begin.line, label, encrypted: headers.encrypted, der })
}

fn first_character(text: &[u8]) -> Excerpt {
    let begin = String::from_utf8_lossy(text.get(..text.len().min(4)).unwrap_or_default());
    Excerpt::of(begin.chars().next().unwrap_or_default(), 1)
}

/// The headers of a block (RFC 1421 section 4.4), up to the blank line behind them.
struct Headers {
    lines: usize,
    encrypted: bool,
}

impl Headers {
    fn of(body: &[u8]) -> Self {
        let mut headers = Self { lines: 0, encrypted: false };
        // The first line is what is left of the BEGIN line.
        for line in Lines::of(body).skip_while(|line| line.text.trim_ascii().is_empty()) {
            let text = line.text.trim_ascii();
            let is_header = text.contains(&b':');
            // A header goes on in lines that begin with a blank.
            let goes_on =
                headers.lines > 0 && line.text.first().is_some_and(|byte| matches!(byte, b' ' | b'\t'));
            if !is_header && !goes_on && !text.is_empty() {
                break;
            }
            headers.lines = line.number;
            if text.is_empty() {
                break;
            }
            let upper = text.to_ascii_uppercase();
            headers.encrypted |= upper.starts_with(b"PROC-TYPE") && upper.ends_with(b"ENCRYPTED");
        }
        headers
    }
}

/// Fuzz target: a PEM file. No block of it is passed over, and each reads the same when it is
/// written again.
#[cfg(any(test, fuzzing, feature = "testing"))]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
pub fn fuzz(data: &[u8]) -> bool {
    let pem = match read(data) {
        Ok(read) => read,
        Err(e) => return crate::testing::check_error(e),
    };
    let text: Vec<u8> = data.iter().copied().filter(|byte| *byte != 0).collect();
    let begins = text.windows(10).filter(|window| window == b"-----BEGIN").count();
    assert!(pem.blocks.len() + pem.commented_out.len() >= begins, "{pem:?}");
    for block in &pem.blocks {
        let base64 = BASE64.encode(&*block.der);
        let written =
            format!("-----BEGIN {label}-----\n{base64}\n-----END {label}-----", label = &*block.label);
        let again = read(written.as_bytes()).expect("a block that was read");
        assert!(
            again.blocks.first().is_some_and(|again| again.der == block.der && again.label == block.label)
        );
    }
    match certificates(data) {
        Ok(certificates) => drop(certificates.unused()),
        Err(e) => drop(crate::testing::check_error(e)),
    }
    !pem.blocks.is_empty()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::cases;

    const ONE: &str = "-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----";
    const TWO: &str = "-----BEGIN PRIVATE KEY-----\nBAUG\n-----END PRIVATE KEY-----";

    /// Label, line and content of each block.
    fn found(content: &[u8]) -> Vec<(String, usize, Vec<u8>)> {
        let pem = read(content).unwrap_or_else(|e| panic!("{e}\n{}", String::from_utf8_lossy(content)));
        pem.blocks.iter().map(|block| (block.label.to_string(), block.line, block.der.to_vec())).collect()
    }

    /// Message and hint, which is checked to be an imperative apart from it.
    fn in_all(error: &PemError) -> String {
        let message = error.to_string();
        let Some(hint) = error.hint() else { return message };
        assert!(hint.starts_with(char::is_uppercase) && !hint.ends_with('.'), "{hint}");
        assert!(!message.contains(&*hint) && !message.contains("openssl"), "{message}");
        format!("{message}. {hint}")
    }

    fn one_and_two(line_of_two: usize) -> Vec<(String, usize, Vec<u8>)> {
        vec![("CERTIFICATE".into(), 1, vec![1, 2, 3]), ("PRIVATE KEY".into(), line_of_two, vec![4, 5, 6])]
    }

    fn utf16(text: &str, mark: &[u8], bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
        mark.iter().copied().chain(text.encode_utf16().flat_map(bytes)).collect()
    }

    #[test]
    fn blocks_that_are_not_in_doubt_are_read() {
        let usual = format!("{ONE}\n{TWO}\n");
        for (text, line) in [
            (usual.clone(), 4),
            (usual.trim_end().to_owned(), 4),
            (format!("{ONE}{TWO}"), 3),
            (format!("{ONE}  {TWO}"), 3),
            (format!("{ONE}\u{feff}{TWO}"), 3),
            (format!("\u{feff}{usual}"), 4),
            (usual.replace('\n', "\r\n"), 4),
            (usual.replace('\n', "\r"), 4),
            (usual.replace('\n', "\n\n"), 7),
            (usual.lines().map(|line| format!("   \t{line} \t\n")).collect(), 4),
            (usual.replace("-----\n", "----- \n"), 4),
            (usual.replace("-----", "-------"), 4),
            (usual.replace("BEGIN ", "BEGIN   ").replace("KEY", " KEY "), 4),
            (usual.replace("-----BEGIN", "----- BEGIN"), 4),
            (format!("{ONE}\nsubject=CN = x, --- a - b ---\n{TWO}"), 5),
            (format!("{ONE}\n--- end of the certificates - begin of the key\n{TWO}"), 5),
            (format!("{ONE}\n# ---- BEGIN CERTIFICATE ----\n; -----END CERTIFICATE-----\n{TWO}"), 6),
            (usual.replace("AQID", "AQ\n I\t\nD").replace("BAUG", " BAUG \n\n"), 6),
            (usual.replace("\nAQID\n", "AQID"), 2),
        ] {
            assert_eq!(found(text.as_bytes()), one_and_two(line), "{text:?}");
        }
        // Two in one line, made by a program without line ends: this reads what OpenSSL would not.
        assert_eq!(
            found(b"-----BEGIN CERTIFICATE-----AQID-----END CERTIFICATE-----BEGIN CERTIFICATE-----BAUG-----END CERTIFICATE-----").len(),
            2
        );
    }

    #[test]
    fn encoding_of_the_text_does_not_matter() {
        let usual = format!("{ONE}\n{TWO}\n");
        for text in [
            utf16(&usual, &[0xff, 0xfe], u16::to_le_bytes),
            utf16(&usual, &[0xfe, 0xff], u16::to_be_bytes),
            utf16(&usual.replace('\n', "\r\n"), &[], u16::to_le_bytes),
            usual.chars().flat_map(|c| u32::from(c).to_le_bytes()).collect(),
            [usual.as_bytes(), &[0; 512]].concat(),
        ] {
            assert_eq!(found(&text), one_and_two(4));
        }
        let latin_1 = [b"Schl\xfcssel f\xfcr\n".as_slice(), usual.as_bytes(), b"\xe4\xff"].concat();
        assert_eq!(found(&latin_1).len(), 2);
    }

    #[test]
    fn unreadable_pem_is_named_with_its_line() {
        let after = |text: &str| format!("{ONE}\n{text}");
        let key = TWO.replace("PRIVATE", "EC PRIVATE");
        for (text, line, words) in [
            (after(&TWO[..40]), 4, "PRIVATE KEY that begins here has no END"),
            (after(&format!("{}\n{ONE}", &TWO[..32])), 4, "the next block begins in line 6"),
            (after(&TWO.replace("END PRIVATE", "END PUBLIC")), 4, "ended as PUBLIC KEY in line 6"),
            (after("-----END PRIVATE KEY-----"), 4, "PRIVATE KEY that does not begin"),
            (after(&TWO.replace("BEGIN", "BEGIM")), 6, "PRIVATE KEY that does not begin"),
            (after(&TWO.replace("BAUG", "BA\n!G")), 6, "\"!\" in the PRIVATE KEY is not Base64"),
            (after(&TWO.replace("BAUG", "BA\n\u{e4}G")), 6, "is not Base64"),
            (after(&TWO.replace('\n', "\\n")), 4, "Put real line breaks"),
            (after(&TWO.replace("BAUG", "BAU")), 4, "characters too few or too many"),
            (after(&TWO.replace("BAUG", "")), 4, "has nothing in it"),
            (after(&TWO.to_lowercase()), 4, "Write it as -----BEGIN PRIVATE KEY-----"),
            (after(&key.replace("-----", "----")), 4, "Write it as -----BEGIN EC PRIVATE KEY-----"),
            (after(&TWO.replacen("-----", "----", 1)), 4, "Write it as -----BEGIN PRIVATE KEY-----"),
            (after(&TWO.replacen("KEY-----", "KEY---", 1)), 4, "Write it as -----BEGIN PRIVATE KEY-----"),
            (after(&TWO.replacen("KEY-----", "KEY", 1)), 4, "Write it as -----BEGIN PRIVATE KEY-----"),
            (
                after(&TWO.replace("-----BEGIN", "\u{2014}-BEGIN")),
                4,
                "Write it as -----BEGIN PRIVATE KEY-----",
            ),
            (after(&TWO.replace("-----END", "----END")), 6, "Write it as -----END PRIVATE KEY-----"),
            (after(&TWO.replace("KEY", "K\u{e9}Y")), 4, "Write it as"),
            (after(&format!("\u{2014}{}", &TWO[..40])), 4, "PRIVATE KEY that begins here has no END"),
            (after("-----BEGIN-----"), 4, "Write it as -----BEGIN CERTIFICATE-----"),
            (after("-----BEGINCERTIFICATE-----"), 4, "Write it as"),
            (after("---- BEGIN SSH2 PUBLIC KEY ----"), 4, "Write it as"),
            (after("# -----BEGIN PRIVATE KEY-----\nBAUG\n-----END PUBLIC KEY-----"), 6, "does not begin"),
        ] {
            let error = read(text.as_bytes()).unwrap_err();
            assert_eq!(error.line, Some(line), "{text}\n{error}");
            assert!(in_all(&error).contains(words), "{text}\n{error}");
        }
    }

    #[test]
    fn blocks_in_comments_are_reported_and_hide_nothing() {
        let commented: String = ONE.lines().map(|line| format!("# {line}\n")).collect();
        let text = format!("{commented}# It begins with -----BEGIN CERTIFICATE-----\n{ONE}\n; {ONE}\n{TWO}");
        // Of the last certificate the first line alone is in a comment: OpenSSL does not read it
        // either.
        let pem = read(text.as_bytes()).unwrap();
        assert_eq!(pem.blocks.iter().map(|block| block.line).collect::<Vec<_>>(), [5, 11]);
        assert_eq!(pem.commented_out, [1, 4, 8]);
        let unused = certificates(text.as_bytes()).unwrap().unused().unwrap();
        assert!(
            unused.starts_with("line 11: PRIVATE KEY, line 1: a block in a comment, line 4: "),
            "{unused}"
        );

        let error = certificates(commented.as_bytes()).unwrap_err().to_string();
        assert!(error.ends_with("the block in line 1 is in a comment"), "{error}");
    }

    #[test]
    fn headers_are_no_content() {
        let text = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,\n 0011\n\nAQID\n\
                    -----END RSA PRIVATE KEY-----";
        for text in [text.to_owned(), text.replace('\n', "\r\n"), text.replace("\n\nA", "\n \n A")] {
            let pem = read(text.as_bytes()).unwrap();
            let [block] = pem.blocks.as_slice() else { panic!("{pem:?}") };
            assert!(block.encrypted);
            assert_eq!(block.der.as_slice(), [1, 2, 3]);
        }
        let pem = read(b"-----BEGIN X-----\nComment: y\nAQID\n-----END X-----").unwrap();
        assert!(pem.blocks.iter().all(|block| !block.encrypted && block.der.as_slice() == [1, 2, 3]));
    }

    #[test]
    fn certificates_are_told_from_everything_else() {
        let labelled = |label: &str| ONE.replace("CERTIFICATE", label);
        for label in ["CERTIFICATE", "X509 CERTIFICATE", "X.509 CERTIFICATE"] {
            let text = format!("{}\n{TWO}\n", labelled(label));
            let read = certificates(text.as_bytes()).unwrap();
            assert_eq!(read.certificates, [(1, CertificateDer::from(vec![1, 2, 3]))]);
            assert_eq!(read.unused().unwrap(), "line 4: PRIVATE KEY");
        }
        for (label, words) in [
            ("TRUSTED CERTIFICATE", "openssl x509 -in"),
            ("PKCS7", "openssl pkcs7"),
            ("Certificate", "is not read"),
            ("CERTIFICATES", "is not read"),
        ] {
            let error = certificates(format!("{ONE}\n{}", labelled(label)).as_bytes()).unwrap_err();
            assert_eq!(error.line, Some(4), "{label}");
            assert!(in_all(&error).contains(words), "{error}");
        }
        for (content, words) in [
            (b"".as_slice(), "it is empty"),
            (b"nonsense", "no -----BEGIN line"),
            (&[0x30, 0x82, 1, 0], "-inform DER"),
            (TWO.as_bytes(), "it has a PRIVATE KEY"),
        ] {
            let error = in_all(&certificates(content).unwrap_err());
            assert!(error.contains("no PEM certificate") && error.contains(words), "{error}");
        }
    }

    #[test]
    fn long_text_is_read_in_one_pass() {
        for piece in [
            "-BEGIN X ",
            "-----BEGIN ",
            "--",
            "-----BEGIN A-----AAAA-----END A-----\n",
            "# -----BEGIN A-----\n",
            "\u{2014} END CERT ",
        ] {
            let text = piece.repeat(4 * 1024 * 1024 / piece.len());
            let _ = read(text.as_bytes());
        }
        let error = read(format!("-----BEGIN {}-----\n", "X".repeat(1_000_000)).as_bytes()).unwrap_err();
        assert!(error.to_string().len() < 300, "{error}");
    }

    proptest! {
        #![proptest_config(cases(512))]

        #[test]
        fn begin_is_never_skipped(
            pieces in prop::collection::vec(prop::sample::select(vec![
                "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----", "AQID", "\n", "\r", " ", "-", "#", "\u{feff}",
                "-----", "BEGIN", "\0", "x", "\u{2014}", "-----BEGIN X-----", "Proc-Type: 4,ENCRYPTED",
            ]), 0..24),
        ) {
            let text = pieces.concat();
            fuzz(text.as_bytes());
        }

        #[test]
        fn pem_of_any_bytes_is_read_or_refused(content in prop::collection::vec(any::<u8>(), 0..400)) {
            fuzz(&content);
        }
    }
}
