//! Parser of URLs from outside, by RFC 3986.

use url::{ParseError, Url};

/// Parses an absolute URL with an authority, `scheme://…`. The crate `url` follows what browsers
/// accept; here only the forms of RFC 3986 are: ASCII (an internationalised name in its `xn--`
/// form), and a host without percent-encoding.
///
/// # Errors
/// The error of `url` for such a text.
pub fn parse(text: &str) -> Result<Url, ParseError> {
    let is_known = |c: char| c.is_ascii_graphic() && !"\"<>\\^`{|}".contains(c);
    let (scheme, rest) = text.split_once("://").ok_or(ParseError::RelativeUrlWithoutBase)?;
    if !scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c)) {
        return Err(ParseError::RelativeUrlWithoutBase); // "://" is later, in a path say
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    if host.is_empty() {
        return Err(ParseError::EmptyHost); // browsers ignore further slashes: "https:///host"
    }
    if host.contains('%') || !text.chars().all(is_known) {
        return Err(ParseError::InvalidDomainCharacter);
    }
    Url::parse(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_accepts_the_urls_of_rfc_3986() {
        for text in [
            "https://mis.example/.well-known/margo?a=%41#b",
            "HTTPS://Mis.Example:8443/",
            "https://user:p%40ss@xn--mnchen-3ya.example/%C3%BC",
            "https://[fd00::1]:443/",
        ] {
            assert!(parse(text).is_ok(), "{text}");
        }
        for text in [
            "mis.example/",
            "https:mis.example/",
            "https:/mis.example/",
            "https:\\\\mis.example/",
            "https://münchen.example/",
            "https://Aڒis.example/",
            "https://A%DA%92.example/",
            "https:A%DA%92.example/https://mis.example/",
            "https://mis.example/ü",
            " https://mis.example/",
            "https://mis.exam\nple/",
            "https://mis.example/{a}",
            "https://",
            "https:///mis.example/",
            "https:///A%DA%92.example/",
            "https://user@/mis.example/",
            "https://:443/",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
