//! The SPIFFE IDs that Margo gives (N2), read strictly.

/// What a SPIFFE ID of a trust domain names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name<'a> {
    /// `/margo/device/<uuid>`
    Device,
    /// `/margo/wfm/<wfm-id>`
    Wfm {
        /// `<wfm-id>`
        wfm_id: &'a str,
    },
    /// `/margo/wfm/<wfm-id>/client/<client-id>`
    WfmClient {
        /// `<wfm-id>`
        wfm_id: &'a str,
        /// `<client-id>`
        client_id: &'a str,
    },
}

impl<'a> Name<'a> {
    /// The name that `id` is in `trust_domain`; `None` for anything else, also in another case or
    /// with an encoded character.
    pub fn parse(id: &'a str, trust_domain: &str) -> Option<Self> {
        let path = id.strip_prefix("spiffe://")?.strip_prefix(trust_domain)?.strip_prefix("/margo/")?;
        let segments: Vec<&str> = path.split('/').collect();
        if !segments.iter().all(|segment| is_segment(segment)) {
            return None;
        }
        match segments.as_slice() {
            ["device", _] => Some(Self::Device),
            ["wfm", wfm_id] => Some(Self::Wfm { wfm_id }),
            ["wfm", wfm_id, "client", client_id] => Some(Self::WfmClient { wfm_id, client_id }),
            _ => None,
        }
    }
}

/// Whether this is one segment of a SPIFFE ID's path: letters, digits, `.`, `-`, `_`, and not `.`
/// or `..`.
pub fn is_segment(text: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    !text.is_empty() && text.len() <= 255 && text.chars().all(fine) && text != "." && text != ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_exactly() {
        let parse = |id: &'static str| Name::parse(id, "factory.example");
        assert_eq!(parse("spiffe://factory.example/margo/wfm/w1"), Some(Name::Wfm { wfm_id: "w1" }));
        let client = Name::WfmClient { wfm_id: "w1", client_id: "Dev_1.a" };
        assert_eq!(parse("spiffe://factory.example/margo/wfm/w1/client/Dev_1.a"), Some(client));
        assert_eq!(parse("spiffe://factory.example/margo/device/1"), Some(Name::Device));
        for wrong in [
            "spiffe://factory.example",
            "spiffe://factory.example/",
            "spiffe://factory.example/margo/wfm",
            "spiffe://factory.example/margo/wfm/",
            "spiffe://factory.example/margo/wfm/w1/",
            "spiffe://factory.example/margo/wfm/w1/client",
            "spiffe://factory.example/margo/wfm/w1/client/..",
            "spiffe://factory.example/margo/wfm/w1/client/a~b",
            "spiffe://factory.example/margo/wfm/w1/client/%41",
            "spiffe://factory.example/margo/wfm/w1/client/a/b",
            "spiffe://factory.example/margo/wfm/w1/Client/a",
            "spiffe://factory.example.org/margo/wfm/w1",
            "spiffe://Factory.example/margo/wfm/w1",
            "SPIFFE://factory.example/margo/wfm/w1",
            "https://factory.example/margo/wfm/w1",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
