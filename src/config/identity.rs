//! `[[identity]]`: the identities of the device, and the way to each.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::Spanned;
use url::Url;

use super::est::{self, EstConfig, Rotate};
use super::reader::Reader;
use super::{Config, ConfigError, KeyConfig, MisConfig, TrustDomainSource, raw};
use crate::keys::ProviderKind;
use crate::platform::credentials::Secret;
use miaf_client::api::IdentityName;
use miaf_spiffe::{MargoName, NameKind, SpiffeId, TrustDomain};

/// Limit on identities: a gateway has one for each device behind it.
const MAX_IDENTITIES: usize = 16;
/// Limit on the bytes of an identifier in a SPIFFE ID that is configured.
const MAX_SEGMENT: usize = 255;

/// One identity of the device.
#[derive(Clone, Debug, PartialEq)]
pub struct IdentityConfig {
    /// Its name: unique, and part of paths.
    pub name: IdentityName,
    /// The way to its SVID.
    pub enroll: Enrollment,
    /// The only SPIFFE ID that it may have.
    pub spiffe_id: Option<SpiffeId>,
    /// Its keys.
    pub key: IdentityKey,
    /// Users, by name or number, who may obtain its software key over the Workload API.
    pub users: Arc<[String]>,
    /// Group that may read its files; that of `[files]` when unset.
    pub group: Option<String>,
    /// Group that may read its key file; that of `[files]` when unset.
    pub key_group: Option<String>,
    /// Its intermediates are published as keys of its bundle, too.
    pub publish_intermediates: bool,
    /// The unit that is restarted after each change of its files. The agent restarts nothing: a
    /// path unit of the package does.
    pub notify: Option<String>,
}

/// `identity.enroll`: the way to an SVID.
#[derive(Clone, Debug, PartialEq)]
pub enum Enrollment {
    /// With the factory certificate (miaf-v0 E).
    FactoryCert,
    /// An operator has a request of this device certified, and brings the chain (N9).
    Manual {
        /// File in which the chain is found.
        svid_file: Option<PathBuf>,
    },
    /// An operator brings key and chain (N9).
    Installed {
        /// File of the chain.
        svid_file: PathBuf,
        /// The PKCS#8 key.
        key: Secret,
    },
    /// With an assertion of the WFM, as the device (miaf-v0 W1 to W5).
    WfmBinding(WfmConfig),
    /// Over EST (RFC 7030), by a token or a certificate (X33).
    Est(Box<EstConfig>),
}

/// `[identity.wfm]`
#[derive(Clone, Debug, PartialEq)]
pub struct WfmConfig {
    /// Base URL of the WFM. A proxy that is used for the MIS (`mis.proxy`) is used for it too: TLS
    /// is with the WFM itself, whatever is in between.
    pub url: Url,
    /// The `wfm-id` that its SVID has to name.
    pub wfm_id: String,
    /// The handle to ask for. Without one the WFM derives it.
    pub client_handle: Option<String>,
}

impl WfmConfig {
    /// Whether an ID names a client of this WFM: the configured one, if one is (miaf-v0 W4).
    pub fn has_client(&self, id: &SpiffeId) -> bool {
        let Some(MargoName::WfmClient { wfm_id, client_id }) = id.margo_name() else { return false };
        wfm_id == self.wfm_id && self.client_handle.as_deref().is_none_or(|handle| handle == client_id)
    }
}

/// The keys of one identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdentityKey {
    /// Provider, chosen by the configuration alone: there is no silent fallback (miaf-v0 K1).
    pub provider: ProviderKind,
    /// When a renewal is for a new key.
    pub rotate: Rotate,
}

impl Enrollment {
    /// Its name in the configuration.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::FactoryCert => "factory-cert",
            Self::Manual { .. } => "manual",
            Self::Installed { .. } => "installed",
            Self::WfmBinding(_) => "wfm-binding",
            Self::Est(_) => "est",
        }
    }

    /// The form of its SPIFFE IDs: a way that leads to a device never leads to a WFM Client, nor
    /// the other way round (N2).
    pub fn name_kind(&self) -> NameKind {
        match self {
            Self::FactoryCert => NameKind::Device,
            Self::Manual { .. } | Self::Installed { .. } | Self::WfmBinding(_) => NameKind::WfmClient,
            Self::Est(est) => est::name_kind(est.allow_nonstandard),
        }
    }

    /// Whether an operator brings each SVID.
    pub fn is_by_operator(&self) -> bool {
        matches!(self, Self::Manual { .. } | Self::Installed { .. })
    }
}

impl IdentityConfig {
    /// The identity of a configuration without `[[identity]]`.
    pub(super) fn device(key: &KeyConfig, users: Arc<[String]>) -> Self {
        Self {
            key: IdentityKey { provider: key.provider, rotate: key.rotate },
            users,
            ..Self::stored(IdentityName::DEVICE)
        }
    }

    /// An identity of which nothing is known but that it is stored: it is served and not renewed.
    pub(crate) fn stored(name: IdentityName) -> Self {
        Self {
            enroll: if name == IdentityName::DEVICE {
                Enrollment::FactoryCert
            } else {
                Enrollment::Manual { svid_file: None }
            },
            name,
            spiffe_id: None,
            key: IdentityKey { provider: ProviderKind::Tpm, rotate: Rotate::Always },
            users: Arc::default(),
            group: None,
            key_group: None,
            publish_intermediates: false,
            notify: None,
        }
    }
}

impl Config {
    /// The identity that enrolls with the factory certificate.
    pub fn device(&self) -> Option<&IdentityConfig> {
        self.identities.iter().find(|identity| identity.enroll == Enrollment::FactoryCert)
    }

    /// Whether a server of the MIS is contacted. A trust bundle in a file needs none, unless an identity
    /// enrolls over EST.
    pub fn contacts_mis(&self) -> bool {
        let over_est =
            || self.identities.iter().any(|identity| matches!(identity.enroll, Enrollment::Est(_)));
        self.mis.as_ref().is_some_and(|mis| !mis.reads_bundle_file() || over_est())
    }
}

impl Reader<'_> {
    /// Validates `[[identity]]`. `key` and `users` are the defaults that other sections set.
    pub(super) fn identities(
        &self,
        raw: &raw::File,
        key: &KeyConfig,
        users: Arc<[String]>,
    ) -> Result<Vec<IdentityConfig>, ConfigError> {
        let entries = &raw.identity.0;
        if entries.is_empty() {
            if let Some(floor) =
                raw.key.require.as_ref().filter(|floor| !floor.get_ref().admits(key.provider))
            {
                let what = format!("it rules out provider = \"{}\" under [key]", key.provider.as_str());
                let hint = "Set provider = \"tpm\" under [key], or remove require";
                return Err(self.wrong(&floor.span(), "key.require", what).with_hint_text(hint));
            }
            return Ok(vec![IdentityConfig::device(key, users)]);
        }
        if let Some(beyond) = entries.get(MAX_IDENTITIES) {
            let what =
                format!("there are {} identities; at most {MAX_IDENTITIES} are allowed", entries.len());
            let hint = "Remove those that no program on this device uses";
            return Err(self.wrong(&beyond.span(), "identity", what).with_hint_text(hint));
        }
        self.check_names(entries)?;
        let mut identities: Vec<IdentityConfig> = Vec::with_capacity(entries.len());
        for (nth, entry) in entries.iter().enumerate() {
            let default_users = if nth == 0 { users.clone() } else { Arc::default() };
            identities.push(self.identity(entry, key, default_users)?);
        }
        let is_device = |identity: &&IdentityConfig| identity.enroll == Enrollment::FactoryCert;
        let mut devices = identities.iter().zip(entries).filter(|(identity, _)| is_device(identity));
        let device = devices.next();
        if let Some((_, entry)) = devices.next() {
            let what =
                "a second identity has \"factory-cert\", and a factory certificate stands for one device";
            let hint =
                "Choose another way for one of them: \"manual\", \"installed\", \"wfm-binding\" or \"est\"";
            return Err(self.wrong(&entry.span(), "identity.enroll", what).with_hint_text(hint));
        }
        if device.is_some() {
            return Ok(identities);
        }
        if let Some(bootstrap) = &raw.bootstrap {
            // Or adding a WFM Client would retire the device.
            let what = "no [[identity]] has enroll = \"factory-cert\", so nothing would use this factory certificate, and \
                        the identity \"device\" would be retired";
            let hint = "Add [[identity]] with name = \"device\" and enroll = \"factory-cert\", before the others; \
                        or remove [bootstrap]";
            return Err(self.wrong(&bootstrap.span(), "bootstrap", what).with_hint_text(hint));
        }
        let is_binding = |identity: &IdentityConfig| matches!(identity.enroll, Enrollment::WfmBinding(_));
        if let Some((_, binding)) = identities.iter().zip(entries).find(|(identity, _)| is_binding(identity))
        {
            let what =
                "\"wfm-binding\" needs the identity of the device, and no [[identity]] has \"factory-cert\"";
            let hint =
                "Add [[identity]] with name = \"device\" and enroll = \"factory-cert\", and [bootstrap]";
            return Err(self.wrong(&binding.span(), "identity.enroll", what).with_hint_text(hint));
        }
        Ok(identities)
    }

    fn check_names(&self, entries: &[Spanned<raw::Identity>]) -> Result<(), ConfigError> {
        let mut known = BTreeSet::new();
        for name in entries.iter().filter_map(|entry| entry.get_ref().name.as_ref()) {
            if !known.insert(name.get_ref()) {
                let what = format!("another [[identity]] of this file has the name {:?}", name.get_ref());
                let hint = "Give each identity a name of its own";
                return Err(self.wrong(&name.span(), "identity.name", what).with_hint_text(hint));
            }
        }
        Ok(())
    }

    /// Validates one `[[identity]]`.
    pub(super) fn identity(
        &self,
        entry: &Spanned<raw::Identity>,
        key: &KeyConfig,
        default_users: Arc<[String]>,
    ) -> Result<IdentityConfig, ConfigError> {
        let raw = entry.get_ref();
        let missing = |key, hint: &str| {
            self.wrong(&entry.span(), key, "it is missing in this [[identity]]").with_hint_text(hint)
        };
        let name = raw
            .name
            .as_ref()
            .ok_or_else(|| missing("identity.name", "Add a name, such as name = \"wfm-client\""))?;
        let parsed = IdentityName::parse(name.get_ref()).map_err(|why| {
            let hint = "Choose a name such as \"wfm-client\"";
            self.wrong(&name.span(), "identity.name", why.to_string()).with_hint_text(hint)
        })?;
        let enroll = self.enrollment(raw, &parsed, &entry.span())?;
        let users = match &raw.users {
            Some(_) => self.users("identity.users", raw.users.as_deref())?,
            None => default_users,
        };
        Ok(IdentityConfig {
            name: parsed,
            spiffe_id: raw.spiffe_id.as_ref().map(|id| self.guard(id, &enroll)).transpose()?,
            key: self.identity_key(raw, &enroll, key, &entry.span())?,
            enroll,
            users,
            group: raw.group.clone(),
            key_group: raw.key_group.clone(),
            publish_intermediates: raw.publish_intermediates.unwrap_or_default(),
            notify: raw.notify.as_ref().map(|unit| self.unit(unit)).transpose()?,
        })
    }

    fn enrollment(
        &self,
        raw: &raw::Identity,
        name: &IdentityName,
        span: &Range<usize>,
    ) -> Result<Enrollment, ConfigError> {
        use raw::Way;
        let missing = |key, hint: &str| {
            self.wrong(span, key, "it is missing in this [[identity]]").with_hint_text(hint)
        };
        let way = raw.enroll.ok_or_else(|| {
            let ways =
                "Set enroll to \"factory-cert\", \"manual\", \"installed\", \"wfm-binding\" or \"est\"";
            missing("identity.enroll", ways)
        })?;
        // In which file the way is set may differ from where the identity begins.
        let needed = |key, way: &str, hint: &str| {
            let what =
                format!("it is missing for the identity \"{name}\", whose enroll = \"{way}\" needs it");
            self.wrong(span, key, what).with_hint_text(hint)
        };
        let foreign = |key, span: Range<usize>, way: &str| {
            let what = format!("it is only allowed with enroll = {way}");
            Err(self.wrong(&span, key, what).with_hint_text("Remove it, or correct enroll"))
        };
        if let Some(file) = raw.svid_file.as_ref().filter(|_| !matches!(way, Way::Manual | Way::Installed)) {
            return foreign("identity.svid_file", file.span(), "\"manual\" or \"installed\"");
        }
        if let Some(file) = raw.key_file.as_ref().filter(|_| way != Way::Installed) {
            return foreign("identity.key_file", file.span(), "\"installed\"");
        }
        if let Some(wfm) = raw.wfm.as_ref().filter(|_| way != Way::WfmBinding) {
            return foreign("identity.wfm", wfm.span(), "\"wfm-binding\"");
        }
        if let Some(est) = raw.est.as_ref().filter(|_| way != Way::Est) {
            return foreign("identity.est", est.span(), "\"est\"");
        }
        let svid_file = raw.svid_file.as_ref().map(|file| self.path(file.get_ref()));
        Ok(match way {
            Way::FactoryCert => Enrollment::FactoryCert,
            Way::Manual => Enrollment::Manual { svid_file },
            Way::Installed => {
                let key = raw.key_file.as_ref().ok_or_else(|| {
                    needed(
                        "identity.key_file",
                        "installed",
                        "Add key_file = \"PATH\", or \"credential:NAME\"",
                    )
                })?;
                Enrollment::Installed {
                    svid_file: svid_file.ok_or_else(|| {
                        needed("identity.svid_file", "installed", "Add svid_file = \"PATH\"")
                    })?,
                    key: self.installed_key(key)?,
                }
            }
            Way::WfmBinding => {
                let wfm = raw.wfm.as_ref().ok_or_else(|| {
                    let hint = "Add [identity.wfm] with url = \"https://…\" and id = \"…\"";
                    needed("identity.wfm", "wfm-binding", hint)
                })?;
                Enrollment::WfmBinding(self.wfm(wfm)?)
            }
            Way::Est => {
                let absent = Spanned::new(span.clone(), raw::Est::default());
                let est = self.est(raw.est.as_ref().unwrap_or(&absent))?;
                Enrollment::Est(Box::new(est))
            }
        })
    }

    /// Validates `PATH`, `file:PATH` or `credential:NAME`.
    fn installed_key(&self, text: &Spanned<String>) -> Result<Secret, ConfigError> {
        let value = text.get_ref();
        if value.is_empty() || value.starts_with("tpm:") {
            let what = "it names neither a file nor a credential: an installed key is a software key";
            return Err(self
                .wrong(&text.span(), "identity.key_file", what)
                .with_hint_text("Write \"PATH\", or \"credential:NAME\""));
        }
        if value.starts_with("file:") || value.starts_with("credential:") {
            return self.secret("identity.key_file", text);
        }
        Ok(Secret::File(self.path(Path::new(value))))
    }

    fn wfm(&self, section: &Spanned<raw::Wfm>) -> Result<WfmConfig, ConfigError> {
        let wfm = section.get_ref();
        let missing = |key, hint: &str| {
            self.wrong(&section.span(), key, "it is missing in this [identity.wfm]").with_hint_text(hint)
        };
        let url = wfm.url.as_ref().ok_or_else(|| missing("identity.wfm.url", "Add url = \"https://…\""))?;
        let id = wfm.id.as_ref().ok_or_else(|| missing("identity.wfm.id", "Add id = \"…\""))?;
        let of_path = |id: &Spanned<String>, key| {
            // As it will stand in a SPIFFE ID.
            let probe = format!("spiffe://a/margo/wfm/{}", id.get_ref());
            let is_one = id.get_ref().len() <= MAX_SEGMENT && !id.get_ref().contains('/');
            if is_one && SpiffeId::parse(&probe).is_ok() {
                return Ok(id.get_ref().clone());
            }
            let what = "it is not one segment of a SPIFFE ID: 1 to 255 letters, digits, '.', '-' and '_', and neither \
                        \".\" nor \"..\"";
            let hint = "Write it as the operator of the WFM names it, such as \"wfm-1\"";
            Err(self.wrong(&id.span(), key, what).with_hint_text(hint))
        };
        let url_read = self.https_url("identity.wfm.url", url)?;
        if url_read.query().is_some() || url_read.fragment().is_some() {
            let error = self.wrong(&url.span(), "identity.wfm.url", "it has a query or a fragment");
            return Err(error.with_hint_text("Write the base URL alone: /api/v1/onboarding is appended"));
        }
        Ok(WfmConfig {
            url: url_read,
            wfm_id: of_path(id, "identity.wfm.id")?,
            client_handle: wfm
                .client_handle
                .as_ref()
                .map(|handle| of_path(handle, "identity.wfm.client_handle"))
                .transpose()?,
        })
    }

    fn guard(&self, id: &Spanned<String>, enroll: &Enrollment) -> Result<SpiffeId, ConfigError> {
        let wrong = |what: String| self.wrong(&id.span(), "identity.spiffe_id", what);
        let parsed =
            SpiffeId::parse(id.get_ref()).map_err(|why| wrong(format!("it is not a SPIFFE ID: {why}")))?;
        if !enroll.name_kind().includes(&parsed) {
            let (kind, form) = (enroll.name_kind().in_words(), enroll.name_kind().form());
            let way = enroll.as_str();
            return Err(wrong(format!("it does not name {kind}, to which enroll = \"{way}\" leads"))
                .with_hint_text(format!("Write {form}, or correct enroll")));
        }
        if let Enrollment::WfmBinding(wfm) = enroll
            && !wfm.has_client(&parsed)
        {
            return Err(wrong(
                "it is not the client that [identity.wfm] describes, by its id and client_handle".to_owned(),
            ));
        }
        Ok(parsed)
    }

    fn identity_key(
        &self,
        raw: &raw::Identity,
        enroll: &Enrollment,
        key: &KeyConfig,
        entry: &Range<usize>,
    ) -> Result<IdentityKey, ConfigError> {
        let is_installed = matches!(enroll, Enrollment::Installed { .. });
        if let Some(provider) = raw.key.provider.as_ref().filter(|_| is_installed)
            && *provider.get_ref() == ProviderKind::Tpm
        {
            let what = "an installed key is a software key: it is not moved into the TPM";
            let hint = "Remove it; or set enroll = \"manual\": then the key is created in the TPM";
            return Err(self.wrong(&provider.span(), "identity.key.provider", what).with_hint_text(hint));
        }
        let configured = raw.key.provider.as_ref().map_or(key.provider, |provider| *provider.get_ref());
        let provider = if is_installed { ProviderKind::Software } else { configured };
        if key.require.is_some_and(|floor| !floor.admits(provider)) {
            let span = raw.key.provider.as_ref().map_or(entry.clone(), Spanned::span);
            let what = if is_installed {
                "key.require = \"tpm\" rules out an installed key, which is a software key".to_owned()
            } else {
                format!("key.require = \"tpm\" rules out provider = \"{}\"", provider.as_str())
            };
            let hint = if is_installed {
                "Set enroll = \"manual\", where the key is created in the TPM; or remove require under [key]"
            } else {
                "Set provider = \"tpm\" under [identity.key]; or remove require under [key]"
            };
            return Err(self.wrong(&span, "identity.key.provider", what).with_hint_text(hint));
        }
        // A new key raises an alert at the MIS (X66).
        let default = if matches!(enroll, Enrollment::Est(_)) { Rotate::Never } else { key.rotate };
        let rotate = self.rotate("identity.key.rotate", raw.key.rotate.as_ref(), default)?;
        Ok(IdentityKey { provider, rotate })
    }

    fn unit(&self, unit: &Spanned<String>) -> Result<String, ConfigError> {
        // systemd.unit(5); no instance of a template may lead out of a directory.
        let name = unit.get_ref();
        let is_allowed = |b: u8| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b);
        let has_type = name.ends_with(".service") || name.ends_with(".target");
        if name.len() <= 255 && has_type && name.bytes().all(is_allowed) {
            return Ok(name.clone());
        }
        let what = "it is not the name of a service or target of systemd";
        let hint = "Write the whole name, such as \"wfm-client.service\"";
        Err(self.wrong(&unit.span(), "identity.notify", what).with_hint_text(hint))
    }

    /// The trust domain that the configuration names: `mis.trust_domain`, which guards must fit. Where
    /// there is neither that nor a discovery document, the guards name it (X11, X22).
    pub(super) fn guarded_trust_domain(
        &self,
        raw: &raw::File,
        identities: &[IdentityConfig],
        mis: &MisConfig,
    ) -> Result<Option<TrustDomain>, ConfigError> {
        let mut named =
            mis.trust_domain.clone().map(|domain| (domain, "which mis.trust_domain sets".to_owned()));
        let guards_name_it = !matches!(mis.source, TrustDomainSource::Discovery { .. });
        for (identity, entry) in identities.iter().zip(&raw.identity.0) {
            let Some(id) = &identity.spiffe_id else { continue };
            match &named {
                Some((domain, by)) if id.trust_domain() != domain => {
                    let span = entry.get_ref().spiffe_id.as_ref().map_or(entry.span(), Spanned::span);
                    let what = format!("it is not in the trust domain \"{domain}\", {by}");
                    let hint = "Correct the one of the two that is wrong";
                    return Err(self.wrong(&span, "identity.spiffe_id", what).with_hint_text(hint));
                }
                None if guards_name_it => {
                    let by = format!("which spiffe_id of the identity \"{}\" names", identity.name);
                    named = Some((id.trust_domain().clone(), by));
                }
                _ => {}
            }
        }
        Ok(named.map(|(domain, _)| domain))
    }
}
