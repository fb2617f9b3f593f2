//! Schema of the configuration as written. Unknown keys are refused: a misspelt one would be
//! silently without effect. Every key is optional, so that one file can be overlaid on another.

use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

use super::WhenStale;
use crate::keys::{KeyFloor, ProviderKind};
use crate::platform::log::LogLevel;

/// Defines a table: its keys, and the tables in it.
macro_rules! table {
    ($name:ident { $($key:ident: $type:ty),* $(,)? } $(with { $($inner:ident: $table:ty),* })?) => {
        #[derive(Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub(super) struct $name {
            $(pub(super) $key: Option<$type>,)*
            $($(pub(super) $inner: $table,)*)?
        }

        impl Overlay for $name {
            fn overlay(&mut self, later: Self) {
                $(if later.$key.is_some() { self.$key = later.$key; })*
                $($(self.$inner.overlay(later.$inner);)*)?
            }
        }
    };
}

/// Overlay of a later file, key by key: keys that it does not have are unchanged.
pub(super) trait Overlay {
    fn overlay(&mut self, later: Self);
}

/// A table whose presence and position matter.
impl<T: Overlay> Overlay for Option<Spanned<T>> {
    fn overlay(&mut self, later: Self) {
        match (self, later) {
            (Some(table), Some(later)) => table.get_mut().overlay(later.into_inner()),
            (table @ None, later) => *table = later,
            (Some(_), None) => {}
        }
    }
}

table!(File { state_dir: PathBuf } with {
    mis: Option<Spanned<Mis>>,
    bootstrap: Option<Spanned<Bootstrap>>,
    identity: Identities,
    key: Key,
    renewal: Renewal,
    retry: Retry,
    bundle: Bundle,
    files: Files,
    socket: Socket,
    workload_api: WorkloadApi,
    metrics: Metrics,
    log: Log
});

table!(Mis {
    discovery_url: Spanned<String>,
    origin: Spanned<String>,
    bundle_url: Spanned<String>,
    bundle_file: Spanned<PathBuf>,
    est_url: Spanned<String>,
    bundle_origins: Spanned<Vec<Spanned<String>>>,
    trust_domain: Spanned<String>,
    proxy: Spanned<String>,
    proxy_auth: Spanned<String>,
    no_proxy: Vec<Spanned<String>>,
} with { trust: Trust });

table!(Trust { ca_file: PathBuf, spki_sha256: Vec<Spanned<String>>, system_roots: bool });

table!(Bootstrap {
    method: Method,
    cert_file: Spanned<PathBuf>,
    cert: Spanned<String>,
    intermediates_file: PathBuf,
    key: Spanned<String>,
    key_auth: Spanned<String>,
});

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Method {
    FactoryCertMtls,
}

/// `[[identity]]`, in the order of their first appearance.
#[derive(Default, Deserialize)]
#[serde(transparent)]
pub(super) struct Identities(pub(super) Vec<Spanned<Identity>>);

/// An entry is laid over the one of its name in an earlier file; a new name is added at the end. A
/// name that one file has twice stays there twice, so that validation finds it.
impl Overlay for Identities {
    fn overlay(&mut self, later: Self) {
        let named =
            |entry: &Spanned<Identity>| entry.get_ref().name.as_ref().map(|name| name.get_ref().clone());
        let mut earlier: Vec<_> = self.0.iter().map(&named).collect();
        for entry in later.0 {
            let name = named(&entry);
            let known =
                earlier.iter_mut().zip(&mut self.0).find(|(known, _)| name.is_some() && **known == name);
            match known {
                Some((known, entry_before)) => {
                    entry_before.get_mut().overlay(entry.into_inner());
                    *known = None;
                }
                None => self.0.push(entry),
            }
        }
    }
}

table!(Identity {
    name: Spanned<String>,
    enroll: Way,
    spiffe_id: Spanned<String>,
    svid_file: Spanned<PathBuf>,
    key_file: Spanned<String>,
    users: Vec<Spanned<String>>,
    group: String,
    key_group: String,
    publish_intermediates: bool,
    notify: Spanned<String>,
} with { key: IdentityKey, wfm: Option<Spanned<Wfm>>, est: Option<Spanned<Est>> });

/// `identity.enroll`
#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Way {
    FactoryCert,
    Manual,
    Installed,
    WfmBinding,
    Est,
}

table!(IdentityKey { provider: Spanned<ProviderKind>, rotate: Spanned<Rotate> });

/// `key.rotate`
#[derive(Clone, Deserialize)]
#[serde(untagged, expecting = "true, false, a number of renewals, or an age such as \"90d\"")]
pub(super) enum Rotate {
    Switch(bool),
    Renewals(i64),
    Age(String),
}

table!(Wfm { url: Spanned<String>, id: Spanned<String>, client_handle: Spanned<String> });

table!(Est {
    token: Spanned<String>,
    remove_token: Spanned<bool>,
    cert_file: Spanned<PathBuf>,
    cert: Spanned<String>,
    intermediates_file: PathBuf,
    key: Spanned<String>,
    key_auth: Spanned<String>,
    common_name: Spanned<String>,
    request_spiffe_id: Spanned<String>,
    allow_nonstandard: bool,
    tls12: bool,
});

table!(Key {
    provider: ProviderKind,
    tcti: Spanned<String>,
    parent: Spanned<String>,
    owner_auth: Spanned<String>,
    rotate: Spanned<Rotate>,
    require: Spanned<KeyFloor>,
});

table!(Renewal { window: Spanned<[f64; 2]> });

table!(Retry { base: Spanned<String>, cap: Spanned<String> });

table!(Bundle { refresh: Spanned<String>, max_age: Spanned<String>, when_stale: WhenStale });

table!(Files {
    dir: Spanned<PathBuf>,
    group: String,
    key_group: String,
    software_key_dir: Spanned<PathBuf>,
});

table!(Socket {
    path: Spanned<PathBuf>,
    group: String,
    sign_path: Spanned<PathBuf>,
    sign_group: String,
    admin_path: Spanned<PathBuf>,
    max_connections: Spanned<usize>,
    max_connections_per_user: Spanned<usize>,
    signatures_per_minute: Spanned<u32>,
});

table!(WorkloadApi { key_users: Vec<Spanned<String>> });

table!(Metrics { textfile: PathBuf });

table!(Log { level: LogLevel });
