//! JSON from outside, read into types and never into a tree of values: what a document says in
//! addition to what is read costs no memory, whatever its shape.
//!
//! Members that are not known are passed over without being built. A known member that is there
//! twice is an error at every depth: RFC 8259 section 4 leaves open which of the two counts, and
//! this parser does not guess. A byte order mark in front is passed over (section 8.1).

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::text::Excerpt;

/// Characters of what the parser says. It quotes what it found.
const MAX_REASON: usize = 200;

/// Largest whole number that floating point tells from its neighbours (RFC 7493 section 2.2).
const MAX_SAFE: f64 = 9_007_199_254_740_991.0;

/// Why a text is not the JSON object that was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct JsonError {
    reason: Excerpt,
    is_incomplete: bool,
}

impl JsonError {
    /// Whether the text ends in the middle: the rest was lost on the way.
    pub fn is_incomplete(&self) -> bool {
        self.is_incomplete
    }
}

impl From<serde_json::Error> for JsonError {
    fn from(e: serde_json::Error) -> Self {
        Self { is_incomplete: e.is_eof(), reason: Excerpt::of(&e, MAX_REASON) }
    }
}

/// Reads a text that is one JSON object, in UTF-8.
///
/// # Errors
/// [`JsonError`]: it is not JSON, not an object, or not of the members of `T`.
pub fn read<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, JsonError> {
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    let Object(read) = serde_json::from_slice(text)?;
    Ok(read)
}

/// The byte order mark, which some editors and servers put in front of UTF-8.
pub const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Whether a text is one whole JSON object. What was cut off anywhere is none.
pub fn is_whole(text: &[u8]) -> bool {
    read::<IgnoredObject>(text).is_ok()
}

struct IgnoredObject;

impl<'de> Deserialize<'de> for IgnoredObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

/// The whole number that a member says, however it is written (`300`, `300.0`, `3e2`). `None`: it
/// is another value, negative, a fraction, or too large to be told exactly.
pub fn whole_number(value: &RawValue) -> Option<u64> {
    let text = value.get();
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    if !text.starts_with(|c: char| c == '-' || c.is_ascii_digit()) {
        return None;
    }
    let number: f64 = text.parse().ok()?;
    let is_whole = (0.0..=MAX_SAFE).contains(&number) && number.fract() == 0.0;
    is_whole.then_some(number as u64)
}

/// The text that a member says. `None`: it is another value.
pub fn text(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

/// An array of at most `N` elements.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct AtMost<T, const N: usize>(pub Vec<T>);

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for AtMost<T, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        at_most::<_, _, N>(deserializer).map(Self)
    }
}

/// Reads an array of at most `N` elements, for a member of type `Vec`.
///
/// # Errors
/// Errors of the deserializer; there are more.
pub fn at_most<'de, T: Deserialize<'de>, D: Deserializer<'de>, const N: usize>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    struct OnlySeq<T, const N: usize>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for OnlySeq<T, N> {
        type Value = Vec<T>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "an array of at most {N} elements")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
            let mut elements = Vec::new();
            while let Some(element) = seq.next_element()? {
                if elements.len() == N {
                    return Err(de::Error::invalid_length(N + 1, &self));
                }
                elements.push(element);
            }
            Ok(elements)
        }
    }
    deserializer.deserialize_seq(OnlySeq::<T, N>(PhantomData))
}

/// A structure that was written as a JSON object. serde's derived structures also take an array
/// with the members in order, which no protocol here means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OnlyMap<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for OnlyMap<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(OnlyMap(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Pair {
        a: u8,
        b: Option<Object<Inner>>,
    }

    #[derive(Debug, Deserialize)]
    struct Inner {
        c: u8,
    }

    #[test]
    fn array_is_no_object_at_any_depth() {
        let read = serde_json::from_str::<Object<Pair>>;
        let Object(pair) = read(r#"{"a":1,"b":{"c":2},"more":[]}"#).unwrap();
        assert_eq!((pair.a, pair.b.unwrap().0.c), (1, 2));
        assert!(read("[1,null]").unwrap_err().to_string().contains("expected a JSON object"));
        assert!(read(r#"{"a":1,"b":[2]}"#).unwrap_err().to_string().contains("expected a JSON object"));
        assert!(read(r#"{"b":null}"#).unwrap_err().to_string().contains("missing field `a`"));
    }

    #[test]
    fn byte_order_mark_is_skipped_in_front_only() {
        assert_eq!(super::read::<Pair>(b"\xef\xbb\xbf {\"a\":1}").unwrap().a, 1);
        for text in ["\u{feff}\u{feff}{\"a\":1}", "{\"a\":1}\u{feff}", "\u{feff}", ""] {
            assert!(super::read::<Pair>(text.as_bytes()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn duplicate_of_a_known_member_is_an_error() {
        let read = |text: &str| super::read::<Pair>(text.as_bytes());
        assert!(read(r#"{"x":1,"a":1,"x":[{}]}"#).is_ok());
        for text in [r#"{"a":1,"a":1}"#, r#"{"a":1,"b":{"c":2,"c":2}}"#] {
            assert!(read(text).unwrap_err().to_string().contains("duplicate field"), "{text}");
        }
    }

    #[test]
    fn unknown_members_may_be_nested_deeply() {
        let deep = format!("{}{}", "[".repeat(400_000), "]".repeat(400_000));
        let text = format!(r#"{{"x":{deep},"a":1}}"#);
        assert_eq!(super::read::<Pair>(text.as_bytes()).unwrap().a, 1);
        assert!(is_whole(text.as_bytes()));
    }

    #[test]
    fn beginning_of_an_object_is_no_object() {
        let text = r#"{"a":[1,"}",{"b":"\"}"}]} "#;
        assert!(is_whole(text.as_bytes()));
        for end in 0..text.len() - 2 {
            assert!(!is_whole(&text.as_bytes()[..end]), "{end}");
        }
        assert!(!is_whole(b"[]") && !is_whole(b"1"));
        assert!(super::read::<Pair>(b"{\"a\":1").unwrap_err().is_incomplete());
        assert!(!super::read::<Pair>(b"{\"a\":[]}").unwrap_err().is_incomplete());
    }

    #[test]
    fn errors_quote_little_of_what_they_found() {
        let long = format!(r#"{{"a":"\u001b]0;{}"}}"#, "x".repeat(1_000_000));
        let told = super::read::<Pair>(long.as_bytes()).unwrap_err().to_string();
        assert!(told.len() < 700 && !told.contains('\u{1b}'), "{told}");
    }

    #[test]
    fn whole_number_is_read_in_every_notation() {
        let read = |text: &str| whole_number(serde_json::from_str(text).unwrap());
        for (text, number) in [
            ("0", 0),
            ("-0", 0),
            ("300", 300),
            ("300.0", 300),
            ("1e0", 1),
            ("3E+2", 300),
            ("18446744073709551615", u64::MAX),
            ("9007199254740991.0", 9_007_199_254_740_991),
        ] {
            assert_eq!(read(text), Some(number), "{text}");
        }
        for text in [
            "-1",
            "-1e0",
            "0.5",
            "1e-1",
            "18446744073709551616",
            "9007199254740992.0",
            "1e400",
            "\"1\"",
            "null",
            "true",
            "[1]",
            "{}",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn array_has_a_limit_of_elements() {
        let read = |text: &str| serde_json::from_str::<AtMost<u8, 2>>(text);
        assert_eq!(read("[1,2]").unwrap().0, [1, 2]);
        assert!(read("[1,2,3]").unwrap_err().to_string().contains("at most 2 elements"));
        assert!(read("{}").is_err());
    }
}
