//! The URL of an EST server.

use std::borrow::Cow;
use std::fmt;

use url::Url;

use crate::hint::Hint;
use crate::transport::shown;

/// Limit on the bytes of the URL: it is part of most messages.
const MAX_URL: usize = 2048;

/// URL of an EST server, complete up to the name of the operation (X16). It is opaque: nothing but
/// the operation is appended to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EstUrl(Url);

/// Operation of EST (RFC 7030 section 3.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    CaCertificates,
    Enroll,
    Renew,
}

impl Operation {
    /// The last segment of its path.
    pub(super) fn segment(self) -> &'static str {
        match self {
            Self::CaCertificates => "cacerts",
            Self::Enroll => "simpleenroll",
            Self::Renew => "simplereenroll",
        }
    }
}

impl EstUrl {
    /// Checks a URL. One slash at its end is dropped.
    ///
    /// # Errors
    /// [`EstUrlError`]: it is no `https` URL of at most 2048 bytes, or it has user info, a query, a
    /// fragment, or more than one slash at its end.
    pub fn parse(mut url: Url) -> Result<Self, EstUrlError> {
        if url.scheme() != "https" || !url.has_host() {
            return Err(EstUrlError::NotHttps);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(EstUrlError::UserInfo);
        }
        if url.query().is_some() {
            return Err(EstUrlError::Query);
        }
        if url.fragment().is_some() {
            return Err(EstUrlError::Fragment);
        }
        if url.as_str().len() > MAX_URL {
            return Err(EstUrlError::TooLong);
        }
        if let Some(path) = url.path().strip_suffix('/') {
            if path.ends_with('/') {
                return Err(EstUrlError::Slashes);
            }
            let path = path.to_owned();
            url.set_path(&path); // of an https URL, the empty path is "/"
        }
        Ok(Self(url))
    }

    /// The URL, without a slash at its end unless that is its whole path.
    pub fn as_url(&self) -> &Url {
        &self.0
    }

    /// URL of an operation, such as `cacerts`: exactly one slash is between the two.
    pub fn operation(&self, operation: &str) -> Url {
        let mut url = self.0.clone();
        url.set_path(&format!("{}/{operation}", self.0.path().trim_end_matches('/')));
        url
    }

    /// Whether it is a host alone, which is rarely what is meant.
    pub(super) fn has_no_path(&self) -> bool {
        self.0.path() == "/"
    }

    /// Whether it ends in the name of an operation, which is appended to it.
    pub(super) fn ends_in_operation(&self) -> bool {
        let operations = [Operation::CaCertificates, Operation::Enroll, Operation::Renew];
        operations.iter().any(|operation| self.0.path().rsplit('/').next() == Some(operation.segment()))
    }
}

impl fmt::Display for EstUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        shown(&self.0).fmt(f)
    }
}

/// Why a URL is not that of an EST server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EstUrlError {
    /// Another scheme, or no host.
    #[error("it is not an absolute https:// URL")]
    NotHttps,
    /// `user:password@`.
    #[error("it has user info, and what is before the \"@\" would be sent to no purpose")]
    UserInfo,
    /// `?…`.
    #[error("it has a query, and the name of an operation is appended to its path")]
    Query,
    /// `#…`.
    #[error("it has a fragment, and the name of an operation is appended to its path")]
    Fragment,
    /// Over the limit.
    #[error("it is longer than {MAX_URL} bytes")]
    TooLong,
    /// `//` at the end.
    #[error("it has more than one slash at its end")]
    Slashes,
}

impl Hint for EstUrlError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let hint = match self {
            Self::UserInfo => {
                "Remove it; a token belongs into the file or credential that token under [identity.est] names"
            }
            Self::NotHttps | Self::Query | Self::Fragment | Self::TooLong | Self::Slashes => {
                "Name the URL up to what is before /simpleenroll: it ends in /.well-known/est or \
                 /.well-known/est/LABEL"
            }
        };
        Some(hint.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<EstUrl, EstUrlError> {
        EstUrl::parse(Url::parse(url).unwrap())
    }

    #[test]
    fn est_url_and_operation_are_joined_with_one_slash() {
        for (url, want) in [
            ("https://e.example/.well-known/est", "https://e.example/.well-known/est/cacerts"),
            ("https://e.example/.well-known/est/", "https://e.example/.well-known/est/cacerts"),
            ("https://e.example:8443/a%2Fb/est/label", "https://e.example:8443/a%2Fb/est/label/cacerts"),
            ("https://e.example", "https://e.example/cacerts"),
            ("https://e.example/", "https://e.example/cacerts"),
            ("https://[fd00::1]/x", "https://[fd00::1]/x/cacerts"),
        ] {
            let url = parse(url).unwrap();
            assert_eq!(url.operation("cacerts").as_str(), want);
        }
        assert!(parse("https://e.example").unwrap().has_no_path());
        assert_eq!(parse("https://e.example/est/"), parse("https://e.example/est"));
        assert!(parse("https://e.example/est/simpleenroll/").unwrap().ends_in_operation());
        assert!(!parse("https://e.example/est").unwrap().ends_in_operation());
    }

    #[test]
    fn est_url_is_refused_where_nothing_can_be_appended() {
        use EstUrlError as E;
        for (url, why) in [
            ("http://e.example/est", E::NotHttps),
            ("data:text/plain,x", E::NotHttps),
            ("https://u@e.example/est", E::UserInfo),
            ("https://u:p@e.example/est", E::UserInfo),
            ("https://:p@e.example/est", E::UserInfo),
            ("https://e.example/est?", E::Query),
            ("https://e.example/est?a=b", E::Query),
            ("https://e.example/est#", E::Fragment),
            ("https://e.example/est//", E::Slashes),
            ("https://e.example//", E::Slashes),
            (&format!("https://e.example/{}", "x".repeat(MAX_URL)), E::TooLong),
        ] {
            assert_eq!(parse(url), Err(why), "{url}");
            crate::hint::assert_apart(&why);
        }
    }
}
