//! Lists of the discovery document, read element by element: what is not needed is not stored.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;
use url::Url;

use super::{MAX_ELEMENT, MAX_LISTED, MAX_URI};
use crate::uri;
use miaf_spiffe::text::Excerpt;

/// Limit on the URLs of CRLs. There is one for each CA that issues SVIDs (miaf-est X73).
pub(super) const MAX_CRL_URIS: usize = 64;
/// Limit on the elements that a message lists as unusable.
const MAX_UNUSABLE: usize = 4;

/// List of the document in which some elements matter here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    /// Those of them that it has.
    pub(super) ours: Vec<&'static str>,
    pub(super) shown: Excerpt,
}

impl Listed {
    /// Parses an array of strings without storing all of them. `sought`: the elements that matter.
    pub(super) fn read(list: &RawValue, sought: &[&'static str]) -> Result<Self, serde_json::Error> {
        let seek = SeekListed { sought, found: Vec::new(), shown: String::new() };
        seek.deserialize(&mut serde_json::Deserializer::from_str(list.get()))
    }

    pub(super) fn has(&self, element: &str) -> bool {
        self.ours.contains(&element)
    }
}

struct SeekListed<'a> {
    sought: &'a [&'static str],
    found: Vec<&'static str>,
    /// The beginning of the list.
    shown: String,
}

impl<'de> DeserializeSeed<'de> for SeekListed<'_> {
    type Value = Listed;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Listed, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for SeekListed<'_> {
    type Value = Listed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of strings")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Listed, A::Error> {
        while let Some(element) = seq.next_element::<String>()? {
            let ours = self.sought.iter().find(|sought| **sought == element);
            if let Some(ours) = ours.filter(|ours| !self.found.contains(ours)) {
                self.found.push(ours);
            }
            if self.shown.len() < MAX_LISTED {
                let comma = if self.shown.is_empty() { "" } else { ", " };
                self.shown.push_str(comma);
                self.shown.push_str(&Excerpt::of(element, MAX_ELEMENT));
            }
        }
        Ok(Listed { ours: self.found, shown: Excerpt::of(self.shown, MAX_LISTED) })
    }
}

/// The URLs of CRLs (miaf-est X14).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CrlUris {
    pub(super) urls: Vec<Url>,
    pub(super) unusable: Option<Excerpt>,
}

impl CrlUris {
    /// Parses an array of strings. An element that is no absolute `http` or `https` URL, and those
    /// beyond the limit, are passed over.
    pub(super) fn read(list: &RawValue) -> Result<Self, serde_json::Error> {
        serde_json::Deserializer::from_str(list.get()).deserialize_seq(SeekCrlUris)
    }
}

struct SeekCrlUris;

impl<'de> Visitor<'de> for SeekCrlUris {
    type Value = CrlUris;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of strings")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<CrlUris, A::Error> {
        let (mut urls, mut unusable, mut more) = (Vec::new(), Vec::new(), 0_usize);
        while let Some(element) = seq.next_element::<String>()? {
            match crl_uri(&element) {
                Some(url) if urls.contains(&url) => {}
                Some(url) if urls.len() < MAX_CRL_URIS => urls.push(url),
                Some(_) => more += 1,
                None if unusable.len() < MAX_UNUSABLE => unusable.push(Excerpt::of(element, MAX_ELEMENT)),
                None => {}
            }
        }
        let unusable = (!unusable.is_empty()).then(|| {
            let listed: Vec<_> = unusable.iter().map(|element| format!("\"{element}\"")).collect();
            format!("no absolute http or https URL: {}", listed.join(", "))
        });
        let more = (more > 0).then(|| format!("{more} more than the {MAX_CRL_URIS} that are read"));
        let why: Vec<String> = unusable.into_iter().chain(more).collect();
        let unusable = (!why.is_empty()).then(|| Excerpt::of(why.join("; "), MAX_LISTED));
        Ok(CrlUris { urls, unusable })
    }
}

fn crl_uri(value: &str) -> Option<Url> {
    let url = uri::parse(value).ok().filter(|url| matches!(url.scheme(), "http" | "https"))?;
    let is_plain = url.has_host() && url.username().is_empty() && url.password().is_none();
    (is_plain && url.as_str().len() <= MAX_URI).then_some(url)
}
