//! `mis.no_proxy`: validation of its entries, with a correction for those that would never match.
//! The libraries that evaluate such lists agree on names, addresses and networks by prefix length,
//! and ignore everything else silently.

use std::net::{IpAddr, Ipv4Addr};

use url::Host;

use crate::hint::Reason;
use miaf_spiffe::text::Excerpt;

const ALLOWED: &str =
    "Write a host name, \".domain\", an IP address, a network such as \"10.0.0.0/8\", or \"*\"";

/// Validates an entry, and returns it in lower case.
///
/// # Errors
/// What is wrong with it, and what to write.
pub(super) fn entry(text: &str) -> Result<String, Reason> {
    let entry = text.to_ascii_lowercase();
    if is_good(&entry) {
        return Ok(entry);
    }
    Err(match meant(&entry) {
        Some(meant) => Reason::from(format!("{:?} never matches", shown(text)))
            .with_hint_text(format!("Write {:?}", shown(&meant))),
        None => {
            Reason::from(format!("{:?} is neither a host nor a network", shown(text))).with_hint_text(ALLOWED)
        }
    })
}

fn shown(text: &str) -> String {
    Excerpt::of(text, 100).into()
}

fn is_good(entry: &str) -> bool {
    let name = entry.strip_prefix('.').unwrap_or(entry);
    // Numbers in other forms are addresses in a URL, and so never names.
    entry == "*" || is_host(entry) || is_network(entry) || (is_name(name) && is_domain(name))
}

fn is_host(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok() || (is_name(text) && is_domain(text))
}

fn is_name(text: &str) -> bool {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
    let is_label = |label: &str| (1..64).contains(&label.len()) && label.bytes().all(fine);
    text.len() <= 253 && text.split('.').all(is_label)
}

fn is_domain(name: &str) -> bool {
    matches!(Host::parse(name), Ok(Host::Domain(_)))
}

fn is_network(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let most = match address.parse() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    let is_plain = bits.bytes().all(|b| b.is_ascii_digit()) && (bits == "0" || !bits.starts_with('0'));
    is_plain && bits.parse::<u8>().is_ok_and(|bits| bits <= most)
}

/// The correction of an invalid entry, where it can be guessed.
fn meant(entry: &str) -> Option<String> {
    let meant = if let Some((_scheme, rest)) = entry.split_once("://") {
        without_port(rest.split(['/', '?', '#']).next()?).to_owned()
    } else if let Some((address, mask)) = entry.split_once('/') {
        network(address, mask)?
    } else if entry.contains(':') || entry.starts_with('[') {
        without_port(entry).to_owned()
    } else if let Some(domain) = entry.strip_prefix("*.") {
        format!(".{domain}")
    } else if let Some(begin) = entry.strip_suffix(".*") {
        network_of_prefix(begin)?
    } else if let Ok(Host::Ipv4(address)) = Host::parse(entry) {
        address.to_string()
    } else {
        entry.strip_suffix('.')?.to_owned()
    };
    is_good(&meant).then_some(meant)
}

fn without_port(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    let is_port = |port: &str| port.bytes().all(|b| b.is_ascii_digit() || b == b'*');
    host.rsplit_once(':').filter(|(_, port)| is_port(port)).map_or(host, |(host, _)| host)
}

/// Corrects a network: a netmask becomes the number of its bits, an address gets four numbers.
fn network(address: &str, mask: &str) -> Option<String> {
    let bits = match (mask.parse::<u8>(), mask.parse::<Ipv4Addr>()) {
        (Ok(bits), _) => u32::from(bits),
        (_, Ok(mask)) => {
            let is_one = |mask: &u32| mask.leading_ones() + mask.trailing_zeros() == 32 || *mask == 0;
            let mask = u32::from(mask);
            [mask, !mask].into_iter().find(is_one)?.leading_ones()
        }
        _ => return None,
    };
    if address.parse::<IpAddr>().is_ok() {
        return Some(format!("{address}/{bits}"));
    }
    let whole = network_of_prefix(address.trim_end_matches('.'))?;
    Some(format!("{}/{bits}", whole.split_once('/')?.0))
}

/// The network of addresses with a prefix of whole numbers: `127` for `127.0.0.0/8`.
fn network_of_prefix(begin: &str) -> Option<String> {
    let given: Option<Vec<u8>> = begin.split('.').map(|number| number.parse().ok()).collect();
    let mut given = given.filter(|given| (1..4).contains(&given.len()))?;
    let bits = given.len() * 8;
    given.resize(4, 0);
    let [a, b, c, d] = given[..] else { return None };
    Some(format!("{}/{bits}", Ipv4Addr::new(a, b, c, d)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hint::{Hint as _, assert_apart};

    #[test]
    fn entry_that_can_match_is_accepted() {
        for (text, expected) in [
            ("MIS.Factory.example", "mis.factory.example"),
            (".factory.example", ".factory.example"),
            ("localhost", "localhost"),
            ("my_host-1", "my_host-1"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("192.0.2.1", "192.0.2.1"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::1", "::1"),
            ("*", "*"),
        ] {
            assert_eq!(entry(text).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn entry_that_never_matches_is_refused_with_a_correction() {
        for (text, meant) in [
            ("127.*", "127.0.0.0/8"),
            ("192.168.*", "192.168.0.0/16"),
            ("*.example", ".example"),
            ("mis.example:8443", "mis.example"),
            ("mis.example:*", "mis.example"),
            ("192.0.2.1:443", "192.0.2.1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:8443", "2001:db8::1"),
            ("https://mis.example/x", "mis.example"),
            ("http://192.0.2.1:80", "192.0.2.1"),
            ("10.0.0.0/255.0.0.0", "10.0.0.0/8"),
            ("192.168.16.0/255.255.240.0", "192.168.16.0/20"),
            ("10.0.0.0/0.255.255.255", "10.0.0.0/8"),
            ("10.0.0.0/08", "10.0.0.0/8"),
            ("10/8", "10.0.0.0/8"),
            ("mis.example.", "mis.example"),
            ("127.1", "127.0.0.1"),
            ("0x7f000001", "127.0.0.1"),
        ] {
            let error = entry(text).unwrap_err();
            assert_apart(&error);
            assert!(error.to_string().ends_with("never matches"), "{text}: {error}");
            assert_eq!(error.hint().unwrap(), format!("Write {meant:?}"), "{text}");
        }
    }

    #[test]
    fn meaningless_entry_is_refused_with_the_allowed_forms() {
        for text in [
            "",
            " ",
            ".",
            "..",
            "*.*",
            "a*",
            "a b",
            "a,b",
            "a..b",
            "10.0.0.0/33",
            "10.0.0.0/",
            "/8",
            "a/8",
            "10.0.0.0/255.0.255.0",
            "2001:db8::/129",
            "fe80::1%eth0",
            "://",
            "256.1.1.1",
            "1.2.3.4.5",
            "[",
            "a\u{1b}",
            "müller.example",
        ] {
            let error = entry(text).unwrap_err();
            assert_apart(&error);
            let error = error.with_hint().to_string();
            assert!(
                error.contains(ALLOWED) && !error.contains("never matches") && !error.contains('\u{1b}'),
                "{text:?}: {error}"
            );
        }
        assert!(entry(&"a".repeat(5000)).unwrap_err().with_hint().to_string().len() < 500);
    }
}
