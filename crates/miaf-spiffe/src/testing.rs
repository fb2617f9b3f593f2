//! Helpers of the tests and the fuzz targets.

#[cfg(any(test, feature = "testing"))]
use proptest::test_runner::Config;

use crate::text::Excerpt;

/// The configuration of a property: as many cases as `make test` has time for, or as
/// `PROPTEST_CASES` says.
#[cfg(any(test, feature = "testing"))]
pub fn cases(usual: u32) -> Config {
    let config = Config { failure_persistence: None, ..Config::default() };
    let is_set = std::env::var_os("PROPTEST_CASES").is_some();
    Config { cases: if is_set { config.cases } else { usual }, ..config }
}

/// Limit of characters of an error about one input, with room for the agent's own words.
const MAX_ERROR: usize = 4096;

/// Panics if an error could fill a log or reach for a terminal. Returns that nothing was accepted.
pub fn check_error(error: impl std::fmt::Display) -> bool {
    let shown = error.to_string();
    #[cfg(test)]
    println!("{shown}");
    let lines: Vec<&str> = shown.lines().collect();
    assert!(shown.chars().count() <= MAX_ERROR, "an error of {} characters", shown.chars().count());
    for line in lines {
        // White space at the ends is no harm.
        let safe = Excerpt::of(line, MAX_ERROR);
        let joined = line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(*safe, *joined, "a terminal would obey an error");
    }
    false
}

/// Parts of an input that are each preceded by their length in two bytes, the higher first. The
/// last one is cut where the input ends.
pub fn parts(mut data: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    while let [high, low, rest @ ..] = data {
        let (part, after) = rest.split_at(usize::from(u16::from_be_bytes([*high, *low])).min(rest.len()));
        parts.push(part);
        data = after;
    }
    parts
}
