//! The `Retry-After` header (RFC 9110 section 10.2.3).

use std::time::Duration;

use miaf_spiffe::time::Timestamp;

/// Parses `Retry-After`: seconds, or an HTTP date (miaf-v0 R5). A date is measured from the
/// response's own `Date`, so that a clock difference does not count. A date that has passed is no
/// delay; a number too large for `u64` is a very long one.
pub(super) fn retry_after(value: &str, date: Option<&str>, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::from(u32::MAX))));
    }
    let until: Timestamp = httpdate::parse_http_date(value).ok()?.into();
    let from = date.and_then(|date| httpdate::parse_http_date(date).ok()).map_or(now, Timestamp::from);
    Some(from.until(until))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_parsed_in_both_forms() {
        let now = Timestamp::from_secs(784_111_777 + 100); // this device is 100 s ahead
        let date = Some("Sun, 06 Nov 1994 08:49:37 GMT");
        let read = |value| retry_after(value, date, now);
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        assert_eq!(read(" 0 "), Some(Duration::ZERO));
        assert_eq!(read("Sun, 06 Nov 1994 08:50:07 GMT"), Some(Duration::from_secs(30)));
        assert_eq!(read("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:50:07 GMT", None, now), Some(Duration::ZERO));
        assert!(read("99999999999999999999999").unwrap() > Duration::from_secs(1 << 30));
        assert_eq!(read("-5"), None);
        assert_eq!(read("soon"), None);
        assert_eq!(read(""), None);
    }
}
