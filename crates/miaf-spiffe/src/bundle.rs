//! The trust bundle: the anchors that SVIDs of one trust domain are validated against (SPIFFE Trust
//! Domain and Bundle, sections 4 and 5; miaf-v0 B1 to B5; margo-now N4).

mod jwk;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::alphabet::STANDARD as ALPHABET;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD as BASE64};
use rustls_pki_types::CertificateDer;
use serde::de::value::MapDeserializer;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::svid::{self, validity};
use super::{SpiffeIdError, TrustDomain};
use crate::json::{self, JsonError, Object, whole_number};
use crate::text::Excerpt;
use crate::time::Timestamp;

/// Limit of anchors in one bundle. More are taken for a mistake, not for a trust domain.
pub(crate) const MAX_ANCHORS: usize = 64;

/// Size limit of an anchor, in bytes of DER: it is parsed at every validation.
const MAX_ANCHOR: usize = 16 * 1024;

/// Limit of bytes of a member of a key that is handed on; the modulus of an RSA key of 16,384 bits
/// has 2,731. A longer one is as if it were missing.
const MAX_MEMBER: usize = 4096;

/// Limit of trust domains in a Bundle Map. Their names are in memory while it is read.
const MAX_TRUST_DOMAINS: usize = 10_000;

/// Limit of warnings about one bundle.
const MAX_WARNINGS: usize = 16;

/// Characters of a value or name that a message quotes.
const MAX_QUOTE: usize = 64;

/// How long a bundle with a lower sequence must have been served before it is accepted (miaf-v0
/// B5).
const REGRESSION_IS_MEANT_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Base64 with or without padding. RFC 7517 section 4.7 demands it, and libraries that write
/// without are around; what is decoded is the same.
const LENIENT_BASE64: GeneralPurpose = GeneralPurpose::new(
    &ALPHABET,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The anchors of one trust domain. It may be empty: then every SVID of the domain is untrusted
/// (miaf-v0 B3). Only the entry of a Bundle Map can withdraw all anchors like that; a plain bundle
/// without any is refused (margo-now N4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    trust_domain: TrustDomain,
    content: BundleContent,
}

impl Deref for Bundle {
    type Target = BundleContent;

    fn deref(&self) -> &BundleContent {
        &self.content
    }
}

/// The anchors of a trust bundle, and what it says beside them: all but the name of its trust domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleContent {
    keys: Vec<BundleKey>,
    anchors: Vec<CertificateDer<'static>>,
    facts: Vec<AnchorFacts>,
    sequence: Option<u64>,
    refresh_hint: Option<Duration>,
    warnings: Vec<BundleWarning>,
}

/// Subject and validity of an anchor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnchorFacts {
    /// Its subject, shortened.
    pub subject: Excerpt,
    /// First moment of its validity.
    pub not_before: Timestamp,
    /// Last moment of its validity.
    pub not_after: Timestamp,
}

impl AnchorFacts {
    /// Whether `at` lies within its validity. Peers on OpenSSL refuse what chains only to
    /// an anchor out of it (X509_verify_cert(3)).
    pub fn is_valid(&self, at: Timestamp) -> bool {
        self.not_before <= at && at <= self.not_after
    }
}

/// Fault of a served bundle that is used nevertheless, as far as it can be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleWarning {
    /// An anchor that is used and that some peers may not read.
    #[error("key {index} ({subject}) is used, but {why}, so some other programs may not read it")]
    Unusual {
        /// Position in `keys`, from 0.
        index: usize,
        /// The certificate's subject, shortened.
        subject: Excerpt,
        /// What is wrong with it.
        why: &'static str,
    },
    /// An anchor that can be read here and that peers cannot read.
    #[error("key {index} ({subject}) is passed over: {why}, so other programs cannot read it")]
    PassedOver {
        /// Position in `keys`, from 0.
        index: usize,
        /// The certificate's subject, shortened.
        subject: Excerpt,
        /// What is wrong with it.
        why: &'static str,
    },
    /// `spiffe_sequence` is no whole number: the bundle counts as one without.
    #[error(
        "its spiffe_sequence is {0}, which is no whole number of 64 bits; an older bundle cannot be told by it"
    )]
    Sequence(Excerpt),
    /// `spiffe_refresh_hint` is no whole number: the agent's own interval counts.
    #[error("its spiffe_refresh_hint is {0}, which is no whole number of seconds")]
    RefreshHint(Excerpt),
}

impl BundleWarning {
    /// Whether it is about a part that is not used.
    pub fn is_loss(&self) -> bool {
        !matches!(self, Self::Unusual { .. })
    }
}

/// One JWK of a [`BundleDocument`]: the members that X509-SVID section 6.1 and RFC 7518 section 6
/// know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct BundleKey {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alg: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crv: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub e: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
    pub kty: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n: Option<String>,
    #[serde(rename = "use")]
    pub usage: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x: Option<String>,
    /// The one certificate, in Base64.
    pub x5c: [String; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub y: Option<String>,
}

/// The SPIFFE bundle document of one trust domain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct BundleDocument {
    /// At most 64.
    pub keys: Vec<BundleKey>,
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spiffe_refresh_hint: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spiffe_sequence: Option<u64>,
}

/// Reads a document that names no trust domain, as the agent's sockets serve it.
impl<'de> Deserialize<'de> for BundleDocument {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Object(entry) = Object::<Entry<'de>>::deserialize(deserializer)?;
        let keys = entry.keys(Rules::Stored).map_err(de::Error::custom)?;
        Ok(Self {
            keys: keys.usable.into_iter().map(|usable| usable.key).collect(),
            spiffe_refresh_hint: entry.spiffe_refresh_hint.and_then(whole_number),
            spiffe_sequence: entry.spiffe_sequence.and_then(whole_number),
        })
    }
}

impl Bundle {
    /// Reads what `trustBundleUri` served: a Bundle Map, of which only the entry of `trust_domain`
    /// counts, or a plain SPIFFE bundle, which is taken as that domain's (miaf-v0 B2). What is in
    /// neither is not built: the memory that this takes is that of the entry.
    ///
    /// # Errors
    /// [`BundleError`]: not the JSON of either form, no entry for the domain, a domain named twice,
    /// a plain bundle without an anchor, or a key that claims to be an X.509 authority and whose
    /// certificate cannot be read.
    pub fn from_served(body: &[u8], trust_domain: &TrustDomain) -> Result<Self, BundleError> {
        Self::read(body, trust_domain, Rules::Served)
    }

    /// Reads a bundle that an agent, perhaps an earlier version, has accepted: from its state or
    /// from its socket. Rules that have become stricter since do not make it unreadable: no fetch
    /// could replace it, because the same bundle is refused when it is served. What was the empty
    /// entry of a Bundle Map is stored as a plain bundle, and is accepted without an anchor.
    ///
    /// # Errors
    /// [`BundleError`]: no version has accepted it.
    pub fn from_stored(body: &[u8], trust_domain: &TrustDomain) -> Result<Self, BundleError> {
        Self::from_served(body, trust_domain).or_else(|_| Self::read(body, trust_domain, Rules::Stored))
    }

    fn read(body: &[u8], trust_domain: &TrustDomain, rules: Rules) -> Result<Self, BundleError> {
        let served = Served::read(body)?;
        let content = match served.trust_domains {
            Some(map) => {
                let found = Entries::read(map, Wanted::Named(trust_domain), rules)?.found;
                let (_, entry) = found.ok_or_else(|| BundleError::NoEntry(trust_domain.clone()))?;
                BundleContent::of_map(entry, served.spiffe_refresh_hint, rules)?
            }
            None => BundleContent::of_plain(&served, rules)?,
        };
        Ok(Self { trust_domain: trust_domain.clone(), content })
    }

    /// The trust domain whose SVIDs it validates.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }
}

/// A trust bundle that was read where it may not be known yet which trust domain it is of: a plain
/// SPIFFE bundle does not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MaybeNamedBundle {
    /// It is the bundle of a trust domain.
    Named(Arc<Bundle>),
    /// It is not known of which. It validates nothing until it is [named](Self::with_name).
    Unnamed(Arc<BundleContent>),
}

impl Deref for MaybeNamedBundle {
    type Target = BundleContent;

    fn deref(&self) -> &BundleContent {
        match self {
            Self::Named(bundle) => bundle,
            Self::Unnamed(content) => content,
        }
    }
}

impl MaybeNamedBundle {
    /// Reads what was served, as [`Bundle::from_served`] does for a trust domain. For none, a plain
    /// SPIFFE bundle has no name, and the one entry of a Bundle Map has its own.
    ///
    /// # Errors
    /// [`BundleError`]: as for [`Bundle::from_served`]; for no trust domain, a Bundle Map that does
    /// not have exactly one.
    pub fn from_served(body: &[u8], trust_domain: Option<&TrustDomain>) -> Result<Self, BundleError> {
        if let Some(trust_domain) = trust_domain {
            return Bundle::from_served(body, trust_domain).map(|bundle| Self::Named(Arc::new(bundle)));
        }
        let served = Served::read(body)?;
        let Some(map) = served.trust_domains else {
            let content = BundleContent::of_plain(&served, Rules::Served)?;
            return Ok(Self::Unnamed(Arc::new(content)));
        };
        let Entries { found, count } = Entries::read(map, Wanted::Only, Rules::Served)?;
        let (name, entry) = found.ok_or(BundleError::NoEntries)?;
        if count > 1 {
            return Err(BundleError::NotOneEntry(count));
        }
        let trust_domain = TrustDomain::parse(&name).map_err(BundleError::EntryName)?;
        let content = BundleContent::of_map(entry, served.spiffe_refresh_hint, Rules::Served)?;
        Ok(Self::Named(Arc::new(Bundle { trust_domain, content })))
    }

    /// Reads a bundle that an agent has accepted without a name, as [`Bundle::from_stored`] does.
    ///
    /// # Errors
    /// [`BundleError`]: no version has accepted it.
    pub fn from_stored_without_name(body: &[u8]) -> Result<Self, BundleError> {
        let read = |rules| BundleContent::of_plain(&json::read(body)?, rules);
        let content = read(Rules::Served).or_else(|_| read(Rules::Stored))?;
        Ok(Self::Unnamed(Arc::new(content)))
    }

    /// The trust domain that it is of, if that is known.
    pub fn trust_domain(&self) -> Option<&TrustDomain> {
        self.named().map(|bundle| bundle.trust_domain())
    }

    /// The bundle, if it is known which trust domain it is of.
    pub fn named(&self) -> Option<&Arc<Bundle>> {
        match self {
            Self::Named(bundle) => Some(bundle),
            Self::Unnamed(_) => None,
        }
    }

    /// The bundle of the trust domain that it is of or, where that is not known, of this one.
    #[must_use]
    pub fn with_name(&self, trust_domain: &TrustDomain) -> Arc<Bundle> {
        match self {
            Self::Named(bundle) => bundle.clone(),
            Self::Unnamed(content) => Arc::new(Bundle {
                trust_domain: trust_domain.clone(),
                content: BundleContent::clone(content),
            }),
        }
    }
}

impl BundleContent {
    fn of_plain(served: &Served<'_>, rules: Rules) -> Result<Self, BundleError> {
        let entry = Entry {
            keys: served.keys.ok_or(BundleError::NeitherForm)?,
            spiffe_sequence: served.spiffe_sequence,
            spiffe_refresh_hint: served.spiffe_refresh_hint,
        };
        let content = Self::from_entry(&entry, served.spiffe_refresh_hint, rules)?;
        if content.anchors.is_empty() && rules == Rules::Served {
            return Err(BundleError::NoAnchors);
        }
        Ok(content)
    }

    fn of_map(entry: &RawValue, map_hint: Option<&RawValue>, rules: Rules) -> Result<Self, BundleError> {
        let entry = ByRules::<Entry<'_>>(rules, PhantomData)
            .deserialize(&mut serde_json::Deserializer::from_str(entry.get()))?;
        Self::from_entry(&entry, map_hint, rules)
    }

    fn from_entry(entry: &Entry<'_>, map_hint: Option<&RawValue>, rules: Rules) -> Result<Self, BundleError> {
        let Keys { usable, mut warnings } = entry.keys(rules)?;
        let mut number = |value: Option<&RawValue>, warning: fn(Excerpt) -> BundleWarning| {
            let value = value?;
            let number = whole_number(value);
            if number.is_none() {
                warnings.push(warning(Excerpt::of(value.get(), MAX_QUOTE)));
            }
            number
        };
        let sequence = number(entry.spiffe_sequence, BundleWarning::Sequence);
        let mut hint = |value| number(value, BundleWarning::RefreshHint).filter(|seconds| *seconds > 0);
        let of_map = hint(map_hint);
        let is_plain = map_hint.zip(entry.spiffe_refresh_hint).is_some_and(|(a, b)| std::ptr::eq(a, b));
        let of_entry = if is_plain { of_map } else { hint(entry.spiffe_refresh_hint) };
        let mut content = Self {
            keys: Vec::with_capacity(usable.len()),
            anchors: Vec::with_capacity(usable.len()),
            facts: Vec::with_capacity(usable.len()),
            sequence,
            refresh_hint: of_map.or(of_entry).map(Duration::from_secs),
            warnings,
        };
        for UsableKey { key, anchor, facts } in usable {
            content.keys.push(key);
            content.anchors.push(anchor);
            content.facts.push(facts);
        }
        Ok(content)
    }

    /// The anchors, as DER certificates, in the order served, each once.
    pub fn anchors(&self) -> &[CertificateDer<'static>] {
        &self.anchors
    }

    /// Subject and validity of the anchors, in the same sequence.
    pub(crate) fn anchor_facts(&self) -> &[AnchorFacts] {
        &self.facts
    }

    /// The anchors whose validity `at` is not within.
    pub fn anchors_out_of_validity(&self, at: Timestamp) -> impl Iterator<Item = &AnchorFacts> {
        self.facts.iter().filter(move |facts| !facts.is_valid(at))
    }

    /// The faults of the served document.
    pub fn warnings(&self) -> &[BundleWarning] {
        &self.warnings
    }

    /// `spiffe_sequence`, where the MIS gives one that can be read.
    pub fn sequence(&self) -> Option<u64> {
        self.sequence
    }

    /// The interval at which the MIS wants to be polled: the map's hint, or the entry's. Never
    /// zero.
    pub fn refresh_hint(&self) -> Option<Duration> {
        self.refresh_hint
    }

    /// The SPIFFE bundle document of this domain: what was served, less everything that B2 says to
    /// ignore and every member that is not known, so that a local program with a stricter parser
    /// reads it too.
    pub fn to_document(&self) -> BundleDocument {
        BundleDocument {
            keys: self.keys.clone(),
            spiffe_refresh_hint: self.refresh_hint.map(|hint| hint.as_secs()),
            spiffe_sequence: self.sequence,
        }
    }

    /// [`to_document`](Self::to_document) for local programs: with a refresh hint, which is that of
    /// the MIS, or else `refresh_hint` in whole seconds, and with `further` certificates as X.509
    /// authorities behind the anchors: those of a [`TrustPath`](svid::TrustPath) to one of them, and
    /// none where the bundle has no anchor. There are clients that consider only what is in here, and
    /// ones that refuse the whole bundle for one JWK without the parameters of its key; these are
    /// added where the MIS left all of them out.
    ///
    /// At most 64 keys in all; a certificate that is there already, or whose key has no form as a
    /// JWK, is passed over.
    #[must_use]
    pub fn document(&self, refresh_hint: Duration, further: &[CertificateDer<'_>]) -> BundleDocument {
        let mut document = self.to_document();
        let seconds = refresh_hint.as_secs() + u64::from(refresh_hint.subsec_nanos() > 0);
        document.spiffe_refresh_hint = document.spiffe_refresh_hint.or(Some(seconds.max(1)));
        for (key, anchor) in document.keys.iter_mut().zip(&self.anchors) {
            key.complete(anchor);
        }
        for key in further.iter().filter_map(BundleKey::of_certificate) {
            let is_new = document.keys.iter().all(|there| there.x5c != key.x5c);
            if is_new && (1..MAX_ANCHORS).contains(&document.keys.len()) {
                document.keys.push(key);
            }
        }
        document
    }

    /// The anchors as concatenated PEM. An empty bundle is an empty text.
    pub fn to_pem(&self) -> String {
        self.anchors.iter().map(|der| svid::certificate_pem(der)).collect()
    }
}

/// A served document of either form.
#[derive(Deserialize)]
struct Served<'a> {
    #[serde(borrow)]
    trust_domains: Option<&'a RawValue>,
    #[serde(borrow)]
    keys: Option<&'a RawValue>,
    #[serde(borrow)]
    spiffe_sequence: Option<&'a RawValue>,
    #[serde(borrow)]
    spiffe_refresh_hint: Option<&'a RawValue>,
}

impl<'a> Served<'a> {
    fn read(body: &'a [u8]) -> Result<Self, BundleError> {
        json::read(body).map_err(|e| other_encoding(body).map_or(e.into(), BundleError::OtherEncoding))
    }
}

/// What a text that is not JSON is in, where certificates are put in place of a bundle.
fn other_encoding(body: &[u8]) -> Option<&'static str> {
    const PEM: &[u8] = b"-----BEGIN ";
    // Programs put a readable form before the PEM. In DER each certificate is a SEQUENCE with a length
    // of two bytes.
    if body.windows(PEM.len()).any(|part| part == PEM) {
        Some("PEM")
    } else {
        body.starts_with(&[0x30, 0x82]).then_some("DER")
    }
}

/// The entry of a Bundle Map for one trust domain.
#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow)]
    keys: &'a RawValue,
    #[serde(borrow)]
    spiffe_sequence: Option<&'a RawValue>,
    #[serde(borrow)]
    spiffe_refresh_hint: Option<&'a RawValue>,
}

impl Entry<'_> {
    fn keys(&self, rules: Rules) -> Result<Keys, BundleError> {
        let mut keys = ReadKeys { rules, usable: Vec::new(), odd: Vec::new(), refused: None };
        keys.deserialize(&mut serde_json::Deserializer::from_str(self.keys.get()))?;
        keys.finish()
    }
}

/// The rules by which a bundle is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rules {
    /// A new bundle must be unambiguous, and readable to peers.
    Served,
    /// A stored bundle must only be what it was when it was accepted.
    Stored,
}

/// Reads an object: a member that is there twice is an error in what is served. In what is stored,
/// the last one counts, as agents have read it.
struct ByRules<T>(Rules, PhantomData<T>);

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for ByRules<T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        match self.0 {
            Rules::Served => Object::deserialize(deserializer).map(|Object(read)| read),
            Rules::Stored => deserializer.deserialize_map(self),
        }
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for ByRules<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<T, A::Error> {
        let mut members: BTreeMap<String, &'de RawValue> = BTreeMap::new();
        while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
            if MEMBERS.contains(&name.as_str()) {
                members.insert(name, value);
            }
        }
        T::deserialize(MapDeserializer::new(members.into_iter())).map_err(de::Error::custom)
    }
}

/// The members that are known of an [`Entry`] or a [`Jwk`].
const MEMBERS: [&str; 13] = [
    "keys",
    "spiffe_sequence",
    "spiffe_refresh_hint",
    "kty",
    "use",
    "x5c",
    "alg",
    "kid",
    "crv",
    "x",
    "y",
    "n",
    "e",
];

/// A map read entry by entry: serde's own maps keep the last of two equal names in silence, and the
/// standard demands that duplicates are rejected. Entries of other domains are passed over,
/// whatever they are: a broken foreign domain must not cost this one its refresh.
struct OfTrustDomain<'a>(Wanted<'a>, Rules);

/// The entry of a Bundle Map that counts.
#[derive(Clone, Copy)]
enum Wanted<'a> {
    /// That of this trust domain.
    Named(&'a TrustDomain),
    /// The only one that there is.
    Only,
}

/// What was found in a Bundle Map.
struct Entries<'a> {
    /// The entry that counts, with its name; of several, the first.
    found: Option<(String, &'a RawValue)>,
    /// The number of all entries.
    count: usize,
}

impl<'a> Entries<'a> {
    fn read(map: &'a RawValue, wanted: Wanted<'_>, rules: Rules) -> Result<Self, serde_json::Error> {
        OfTrustDomain(wanted, rules).deserialize(&mut serde_json::Deserializer::from_str(map.get()))
    }
}

impl<'de> DeserializeSeed<'de> for OfTrustDomain<'_> {
    type Value = Entries<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for OfTrustDomain<'_> {
    type Value = Entries<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of trust domains")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut seen, mut found) = (BTreeSet::new(), None);
        while let Some(name) = map.next_key::<String>()? {
            let is_wanted = match self.0 {
                Wanted::Named(trust_domain) => name == trust_domain.as_str(),
                Wanted::Only => true,
            };
            if is_wanted && found.is_none() {
                found = Some((name.clone(), map.next_value()?));
            } else {
                map.next_value::<IgnoredAny>()?;
            }
            if seen.len() == MAX_TRUST_DOMAINS && self.1 == Rules::Served {
                let most = format_args!("it names more than {MAX_TRUST_DOMAINS} trust domains");
                return Err(de::Error::custom(most));
            }
            if let Some(name) = seen.replace(name) {
                let name = Excerpt::of(name, MAX_QUOTE);
                return Err(de::Error::custom(format_args!("trust domain \"{name}\" appears twice")));
            }
        }
        Ok(Entries { found, count: seen.len() })
    }
}

/// The keys of a bundle that are anchors, and what is wrong with others.
struct Keys {
    usable: Vec<UsableKey>,
    warnings: Vec<BundleWarning>,
}

struct UsableKey {
    key: BundleKey,
    anchor: CertificateDer<'static>,
    facts: AnchorFacts,
}

/// Whether the parsers of peers read an anchor.
enum Peers {
    Read,
    MayNotRead(&'static str),
    CannotRead(&'static str),
}

/// Reads keys one after the other, and collects those that are anchors.
struct ReadKeys {
    rules: Rules,
    usable: Vec<(usize, UsableKey, Option<&'static str>)>,
    /// Those that peers cannot read, and why.
    odd: Vec<(usize, UsableKey, &'static str)>,
    refused: Option<BundleError>,
}

impl ReadKeys {
    fn take(&mut self, index: usize, jwk: &Jwk<'_>) -> Result<(), BundleError> {
        let Some((key, peers)) = usable_key(index, jwk, self.rules)? else { return Ok(()) };
        let is_new = self.usable.iter().all(|(_, other, _)| other.anchor != key.anchor);
        let warning = match peers {
            Peers::Read => None,
            Peers::MayNotRead(why) => Some(why),
            Peers::CannotRead(why) => {
                if self.odd.len() < MAX_ANCHORS && self.odd.iter().all(|(_, odd, _)| odd.anchor != key.anchor)
                {
                    self.odd.push((index, key, why));
                }
                return Ok(());
            }
        };
        if is_new && self.usable.len() == MAX_ANCHORS {
            return Err(BundleError::TooManyAnchors);
        }
        if is_new {
            self.usable.push((index, key, warning));
        }
        Ok(())
    }

    /// Passes over what peers cannot read, as long as there is anything else.
    fn finish(self) -> Result<Keys, BundleError> {
        if let Some(why) = self.refused {
            return Err(why);
        }
        let (mut all, mut warnings) = (self.usable, Vec::new());
        match self.odd.first() {
            // It would be published as an empty one, which withdraws every authority (miaf-v0 B3).
            Some((index, _, why)) if all.is_empty() && self.rules == Rules::Served => {
                return Err(BundleError::unreadable(*index, why));
            }
            _ if all.is_empty() => {
                all = self.odd.into_iter().map(|(index, key, why)| (index, key, Some(why))).collect();
            }
            _ => warnings.extend(self.odd.into_iter().map(|(index, key, why)| BundleWarning::PassedOver {
                index,
                subject: key.facts.subject,
                why,
            })),
        }
        warnings.extend(all.iter().filter_map(|(index, key, why)| {
            why.map(|why| BundleWarning::Unusual { index: *index, subject: key.facts.subject.clone(), why })
        }));
        warnings.truncate(MAX_WARNINGS);
        Ok(Keys { usable: all.into_iter().map(|(_, key, _)| key).collect(), warnings })
    }
}

impl<'de> DeserializeSeed<'de> for &mut ReadKeys {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for &mut ReadKeys {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of keys")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let mut index = 0;
        while self.refused.is_none() {
            let jwk = ByRules::<Jwk<'de>>(self.rules, PhantomData);
            let Some(jwk) = seq.next_element_seed(jwk)? else { return Ok(()) };
            self.refused = self.take(index, &jwk).err();
            index += 1;
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

/// The members of a JWK that count here or are handed on. A value of another type than it should be
/// makes a key unknown, not the bundle unreadable.
#[derive(Deserialize)]
struct Jwk<'a> {
    #[serde(borrow)]
    kty: Option<&'a RawValue>,
    #[serde(borrow, rename = "use")]
    usage: Option<&'a RawValue>,
    #[serde(borrow)]
    x5c: Option<&'a RawValue>,
    #[serde(borrow)]
    alg: Option<&'a RawValue>,
    #[serde(borrow)]
    kid: Option<&'a RawValue>,
    #[serde(borrow)]
    crv: Option<&'a RawValue>,
    #[serde(borrow)]
    x: Option<&'a RawValue>,
    #[serde(borrow)]
    y: Option<&'a RawValue>,
    #[serde(borrow)]
    n: Option<&'a RawValue>,
    #[serde(borrow)]
    e: Option<&'a RawValue>,
}

/// One JWK of the set: `None` when the standard says to ignore it, else the key with the one
/// certificate that counts.
fn usable_key(index: usize, jwk: &Jwk<'_>, rules: Rules) -> Result<Option<(UsableKey, Peers)>, BundleError> {
    let text = |value: Option<&RawValue>| value.filter(|v| v.get().len() <= MAX_MEMBER).and_then(json::text);
    let known = |value, known: &[&'static str]| {
        text(value).and_then(|text| known.iter().copied().find(|k| *k == text))
    };
    let (Some(kty), Some(usage)) = (known(jwk.kty, &["EC", "RSA", "OKP"]), known(jwk.usage, &["x509-svid"]))
    else {
        return Ok(None);
    };
    // RFC 8037: `kty` names a family of kinds, of which one signs certificates here (margo-now N7).
    if kty == "OKP" && known(jwk.crv, &["Ed25519"]).is_none() {
        return Ok(None);
    }
    let unreadable = |why: &str| BundleError::unreadable(index, why);
    let Some(x5c) = jwk.x5c else { return Ok(None) };
    // To ignore it would be to take an authority for withdrawn because of a typing error (miaf-v0
    // B3).
    let First(first) = serde_json::from_str(x5c.get()).map_err(|_| unreadable("its x5c is not an array"))?;
    let Some(first) = first else { return Ok(None) };
    let first =
        json::text(first).ok_or_else(|| unreadable("the first element of its x5c is not a string"))?;
    let der = certificate_of(first, rules).map_err(unreadable)?;
    let certificate = match X509Certificate::from_der(&der) {
        Ok(([], certificate)) => certificate,
        Ok(_) => return Err(unreadable("bytes follow the certificate in its x5c")),
        Err(_) => return Err(unreadable("its x5c does not hold an X.509 certificate")),
    };
    webpki::anchor_from_trusted_cert(&CertificateDer::from(der.as_slice()))
        .map_err(|_| unreadable("its certificate cannot serve as an anchor"))?;
    let (not_before, not_after) = validity(&certificate);
    let subject = Excerpt::of(certificate.subject(), MAX_QUOTE);
    let peers = match (svid::unreadable_to_peers(&der, &certificate), svid::long_serial(&certificate)) {
        (Some(why), _) => Peers::CannotRead(why),
        (None, Some(why)) => Peers::MayNotRead(why),
        (None, None) => Peers::Read,
    };
    let key = BundleKey {
        kty,
        usage,
        x5c: [BASE64.encode(&der)],
        alg: text(jwk.alg),
        kid: text(jwk.kid),
        crv: text(jwk.crv),
        x: text(jwk.x),
        y: text(jwk.y),
        n: text(jwk.n),
        e: text(jwk.e),
    };
    let facts = AnchorFacts { subject, not_before, not_after };
    Ok(Some((UsableKey { key, anchor: CertificateDer::from(der), facts }, peers)))
}

/// The certificate in an element of `x5c`: Base64, in one line or in many, padded or not.
fn certificate_of(mut text: String, rules: Rules) -> Result<Vec<u8>, &'static str> {
    text.retain(|c| !matches!(c, ' ' | '\t' | '\r' | '\n'));
    if text.starts_with("-----BEGIN") {
        return Err("its x5c is PEM; it should be Base64 alone, without the lines BEGIN and END");
    }
    if text.len() > MAX_ANCHOR.div_ceil(3) * 4 && rules == Rules::Served {
        return Err("the certificate in its x5c is larger than 16 KiB");
    }
    LENIENT_BASE64.decode(&text).map_err(|_| match text.contains(['-', '_']) {
        true => "its x5c is not standard Base64 but the one for URLs (base64url)",
        false => "its x5c is not standard Base64",
    })
}

/// The first element of an array. The others are not built.
struct First<'a>(Option<&'a RawValue>);

impl<'de> Deserialize<'de> for First<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OnlySeq;
        impl<'de> Visitor<'de> for OnlySeq {
            type Value = First<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<First<'de>, A::Error> {
                let first = seq.next_element()?;
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(First(first))
            }
        }
        deserializer.deserialize_seq(OnlySeq)
    }
}

/// Whether a bundle just served may replace the cached one (miaf-v0 B5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SequenceCheck {
    /// Newer, equal, or without a number to compare.
    Accepted,
    /// Lower than that of the cached one, first seen at `since`: refused until it has been served
    /// for 24 hours.
    Regressed {
        /// When the regression was first seen.
        since: Timestamp,
    },
}

/// Compares sequence numbers. `regressed_since` is what the last call returned, if it was a
/// regression.
pub fn check_sequence(
    cached: Option<u64>,
    served: Option<u64>,
    regressed_since: Option<Timestamp>,
    now: Timestamp,
) -> SequenceCheck {
    match (cached, served) {
        (Some(cached), Some(served)) if served < cached => {
            let since = regressed_since.filter(|since| *since <= now).unwrap_or(now);
            if now >= since.after(REGRESSION_IS_MEANT_AFTER) {
                SequenceCheck::Accepted
            } else {
                SequenceCheck::Regressed { since }
            }
        }
        _ => SequenceCheck::Accepted,
    }
}

/// Why a served trust bundle is refused. The cached one stays in use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Not JSON, mistyped, a duplicate member or trust domain.
    #[error("it is not a SPIFFE bundle: {0}")]
    Json(#[from] JsonError),
    /// Something in PEM or DER, as certificates are.
    #[error("it is in {0}, and a trust bundle is JSON: a JWK set with the CA certificates in it")]
    OtherEncoding(&'static str),
    /// An object with neither `trust_domains` nor `keys`.
    #[error("it has neither \"trust_domains\" (a Bundle Map) nor \"keys\" (a SPIFFE bundle)")]
    NeitherForm,
    /// The map lacks this agent's domain.
    #[error("the Bundle Map has no entry for the trust domain \"{0}\"")]
    NoEntry(TrustDomain),
    /// The map has no trust domain at all.
    #[error("the Bundle Map has no trust domain")]
    NoEntries,
    /// The map has several trust domains, and it is not known which of them is meant.
    #[error("the Bundle Map has {0} trust domains, and the configuration does not say which one counts")]
    NotOneEntry(usize),
    /// The only entry of the map is not named as a trust domain is.
    #[error("the name of the only entry of the Bundle Map is not a trust domain: {0}")]
    EntryName(SpiffeIdError),
    /// A key that claims to be an X.509 authority is damaged.
    #[error("key {index} of the bundle cannot be used: {why}")]
    Anchor {
        /// Position in `keys`, from 0.
        index: usize,
        /// What is wrong with it.
        why: String,
    },
    /// A plain bundle with no key that is an X.509 authority (margo-now N4). The empty entry of a
    /// Bundle Map is not an error (miaf-v0 B3).
    #[error("it has no key that is an X.509 authority (\"use\": \"x509-svid\", with an \"x5c\")")]
    NoAnchors,
    /// More than 64 anchors.
    #[error("it has more anchors than the {MAX_ANCHORS} that are allowed")]
    TooManyAnchors,
}

impl BundleError {
    fn unreadable(index: usize, why: &str) -> Self {
        Self::Anchor { index, why: why.to_owned() }
    }
}

impl From<serde_json::Error> for BundleError {
    fn from(e: serde_json::Error) -> Self {
        Self::Json(e.into())
    }
}

#[cfg(test)]
mod tests;
