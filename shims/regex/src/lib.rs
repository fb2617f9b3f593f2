//! The part of `regex` that tss-esapi uses, from `regex-lite` by the same authors: the same patterns in a tenth of the
//! code. Everything else that could be asked for is missing here, and would not compile.

#![forbid(unsafe_code)]

pub use regex_lite::Regex;
