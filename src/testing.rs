//! What the tests of this crate share.

use proptest::test_runner::Config;

/// The configuration of a property: as many cases as `make test` has time for, or as
/// `PROPTEST_CASES` says.
pub(crate) fn cases(usual: u32) -> Config {
    let config = Config { failure_persistence: None, ..Config::default() };
    let is_set = std::env::var_os("PROPTEST_CASES").is_some();
    Config { cases: if is_set { config.cases } else { usual }, ..config }
}
