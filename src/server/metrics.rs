//! Metrics for Prometheus (text format 0.0.4): `GET /metrics`, and the same as a file for the node
//! exporter.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::hint::Hint as _;
use crate::publish::status;
use crate::publish::{IdentitySnapshot, Snapshot};
use crate::server::connection_limit::LimitReached;
use crate::server::peer::{Peer, Role};
use miaf_client::api::{IdentityName, IdentityStatus, State, Word as _};
use miaf_spiffe::time::Timestamp;

/// Media type of the text.
pub(super) const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Counters of what happens on the sockets while the agent runs.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    sockets: [SocketCounters; Role::ALL.len()],
    commands: AtomicU64,
    signatures: Outcomes,
    keys_sent: Outcomes,
}

#[derive(Debug, Default)]
struct SocketCounters {
    requests: AtomicU64,
    refused: AtomicU64,
}

impl Counters {
    pub(super) fn request(&self, peer: Peer) {
        count(&self.of(peer.role).requests);
    }

    pub(super) fn connection_refused(&self, peer: Peer, limit: LimitReached) {
        if count(&self.of(peer.role).refused) == 0 {
            // Once: the counter has the rest.
            tracing::warn!(
                uid = peer.uid,
                pid = peer.pid,
                socket = peer.role.as_str(),
                hint = limit.hint().map(tracing::field::display),
                "connection refused: {limit}"
            );
        }
    }

    /// Counts a signature by the key of an identity.
    pub(super) fn signature(&self, identity: &IdentityName, is_made: bool) {
        self.signatures.count(identity, is_made);
    }

    /// Counts a request for the software key of an identity.
    pub(super) fn key_request(&self, identity: &IdentityName, is_sent: bool) {
        self.keys_sent.count(identity, is_sent);
    }

    pub(super) fn command(&self) {
        count(&self.commands);
    }

    fn of(&self, role: Role) -> &SocketCounters {
        let [agent, sign, admin] = &self.sockets;
        match role {
            Role::Read => agent,
            Role::Sign => sign,
            Role::Admin => admin,
        }
    }
}

/// Successes and failures, of each identity.
#[derive(Debug, Default)]
struct Outcomes(Mutex<BTreeMap<IdentityName, [u64; 2]>>);

impl Outcomes {
    fn count(&self, identity: &IdentityName, is_success: bool) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let [successes, failures] = counts.entry(identity.clone()).or_default();
        *if is_success { successes } else { failures } += 1;
    }

    fn of(&self, identity: &IdentityName) -> [f64; 2] {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.get(identity).copied().unwrap_or_default().map(|count| count as f64)
    }
}

/// Adds one. Returns the value before.
fn count(counter: &AtomicU64) -> u64 {
    counter.fetch_add(1, Ordering::Relaxed)
}

/// All metrics as of `now`.
pub(super) fn text(snapshot: &Snapshot, counters: &Counters, now: Timestamp) -> String {
    let mut text = Text::default();
    text.gauge(
        "build_info",
        "Always 1; the version of the agent.",
        [(&[("version", env!("CARGO_PKG_VERSION"))][..], 1.0)],
    );
    identity_metrics(&mut text, snapshot, now);
    trust_domain_metrics(&mut text, snapshot, now);
    error_metrics(&mut text, snapshot);
    socket_metrics(&mut text, counters);
    use_metrics(&mut text, snapshot, counters);
    text.0
}

fn identity_metrics(text: &mut Text, snapshot: &Snapshot, now: Timestamp) {
    let status = status::status(snapshot, now);
    let states = status.identities.iter().flat_map(|identity| {
        let sample = |state: &State| {
            let labels = [("identity", identity.name.as_str()), ("state", state.as_str())];
            (labels, flag(identity.state == *state))
        };
        State::ALL.iter().map(sample)
    });
    let states: Vec<_> = states.collect();
    text.gauge(
        "state",
        "1 for the state that the identity is in.",
        states.iter().map(|(labels, value)| (&labels[..], *value)),
    );
    let way = |identity: &IdentitySnapshot| Some((identity.name.to_string(), identity.enroll?));
    let ways: Vec<_> = snapshot.identities().filter_map(way).collect();
    let ways: Vec<_> =
        ways.iter().map(|(name, way)| [("identity", name.as_str()), ("enroll", *way)]).collect();
    if !ways.is_empty() {
        let ways = ways.iter().map(|labels| (&labels[..], 1.0));
        text.gauge("identity_info", "Always 1; the way to the identity.", ways);
    }
    let waiting = status.identities.iter().filter(|identity| identity.is_by_operator());
    let waiting: Vec<_> = waiting
        .map(|identity| ([("identity", identity.name.as_str())], flag(needs_operator(identity))))
        .collect();
    if !waiting.is_empty() {
        text.gauge(
            "operator_needed",
            "1: an operator has to bring the next SVID, or the first.",
            waiting.iter().map(|(labels, value)| (&labels[..], *value)),
        );
    }
    let by_token: Vec<_> = status
        .identities
        .iter()
        .filter(|identity| identity.is_by_token())
        .filter_map(|identity| Some(([("identity", identity.name.as_str())], identity.est.as_ref()?)))
        .collect();
    if !by_token.is_empty() {
        text.gauge(
            "token_needed",
            "1: an operator has to bring an enrollment token; without one no SVID is requested.",
            by_token.iter().map(|(labels, est)| (&labels[..], flag(est.token_needed))),
        );
        text.gauge(
            "token_needed_soon",
            "1: the renewal fails, and more than 80 % of the SVID's lifetime is over; after it a token is needed.",
            by_token.iter().map(|(labels, est)| (&labels[..], flag(est.token_needed_after.is_some()))),
        );
    }
    let mut of_each = |name, help, value: &dyn Fn(&IdentitySnapshot) -> Option<f64>| {
        let samples: Vec<_> = snapshot
            .identities()
            .filter_map(|identity| Some(([("identity", identity.name.as_str())], value(identity)?)))
            .collect();
        if !samples.is_empty() {
            text.gauge(name, help, samples.iter().map(|(labels, value)| (&labels[..], *value)));
        }
    };
    let svid = |identity: &IdentitySnapshot| identity.current.as_ref().map(|current| current.svid.clone());
    of_each("ready", "1: there is a valid SVID that the trust bundle vouches for.", &|identity| {
        Some(flag(snapshot.is_ready(identity, now)))
    });
    of_each("svid_not_before_timestamp_seconds", "Start of the SVID's validity.", &|identity| {
        svid(identity).map(|svid| seconds(svid.not_before()))
    });
    of_each(
        "svid_not_after_timestamp_seconds",
        "End of the SVID's validity, or of an issuer's that it needs, whichever comes first.",
        &|identity| svid(identity).map(|svid| seconds(svid.until())),
    );
    of_each(
        "svid_renew_at_timestamp_seconds",
        "When the SVID is renewed, or from when on an operator has to bring the next.",
        &|identity| identity.renew_at.map(seconds),
    );
    of_each(
        "svid_ends_while_waiting",
        "1: the MIS has requested a delay (Retry-After) that lasts longer than the SVID.",
        &|identity| svid(identity).map(|_| flag(identity.ends_while_waiting)),
    );
    of_each(
        "svid_anchor_not_after_timestamp_seconds",
        "End of validity of the trust anchor that vouches for the SVID.",
        &|identity| snapshot.vouching_anchor_not_after(identity, now).map(seconds),
    );
    of_each("key_lost", "1: the key of the SVID cannot be used any more.", &|identity| {
        svid(identity).map(|_| flag(identity.key_is_lost))
    });
}

/// Whether an operator is needed for the next SVID of an identity that they bring them for. In the
/// state `blocked`, it is something else that has to be corrected.
fn needs_operator(identity: &IdentityStatus) -> bool {
    matches!(identity.state.known(), Some(State::WaitingForOperator | State::Expired))
}

fn trust_domain_metrics(text: &mut Text, snapshot: &Snapshot, now: Timestamp) {
    let bundle = snapshot.bundle.as_ref();
    text.one(
        "bundle_fetched_timestamp_seconds",
        "When the trust bundle was last known to be current.",
        bundle.map(|current| seconds(current.fetched_at)),
    );
    text.one(
        "bundle_stale",
        "1: the trust bundle is older than bundle.max_age.",
        bundle.map(|current| flag(current.is_stale(now))),
    );
    text.one(
        "bundle_stale_at_timestamp_seconds",
        "When the trust bundle becomes or became older than bundle.max_age.",
        bundle.and_then(|current| current.stale_at).map(seconds),
    );
    text.one(
        "bundle_anchors",
        "Certificates in the trust bundle.",
        bundle.map(|current| current.bundle.anchors().len() as f64),
    );
    text.one(
        "bundle_anchors_not_valid",
        "Certificates in the trust bundle whose validity has ended or not begun.",
        bundle.map(|current| current.bundle.anchors_out_of_validity(now).count() as f64),
    );
    text.one(
        "bundle_unused_parts",
        "Parts of the trust bundle as served that are not used.",
        bundle.map(|current| current.bundle.warnings().len() as f64),
    );
    text.one(
        "bundle_sequence",
        "Sequence number of the trust bundle.",
        bundle.and_then(|current| current.bundle.sequence()).map(|sequence| sequence as f64),
    );
    let factory = snapshot.bootstrap.as_ref();
    text.one(
        "factory_certificate_not_after_timestamp_seconds",
        "End of the factory certificate's validity.",
        factory.map(|facts| seconds(facts.not_after)),
    );
    text.one(
        "configuration_rejected",
        "1: the configuration cannot be used, and is not.",
        Some(flag(snapshot.rejects_configuration())),
    );
}

/// Without a label `identity`: what concerns the device, and not one identity alone.
fn error_metrics(text: &mut Text, snapshot: &Snapshot) {
    let of_identities =
        snapshot.identities().map(|identity| (Some(identity.name.as_str()), &identity.last_error));
    let all: Vec<(Vec<_>, _)> = std::iter::once((None, &snapshot.last_error))
        .chain(of_identities)
        .map(|(name, error)| (name.map(|name| ("identity", name)).into_iter().collect(), error.as_ref()))
        .collect();
    text.gauge(
        "failing",
        "1: there is an error; the status has it.",
        all.iter().map(|(labels, error)| (&labels[..], flag(error.is_some()))),
    );
    text.gauge(
        "needs_correction",
        "1: the error does not pass by itself.",
        all.iter()
            .map(|(labels, error)| (&labels[..], flag(error.is_some_and(|(error, _)| error.permanent)))),
    );
}

fn socket_metrics(text: &mut Text, counters: &Counters) {
    let of_each = |counter: fn(&SocketCounters) -> &AtomicU64| {
        Role::ALL.map(|role| ([("socket", role.as_str())], loaded(counter(counters.of(role)))))
    };
    let requests = of_each(|socket| &socket.requests);
    text.counter(
        "socket_requests_total",
        "Requests on a socket.",
        requests.iter().map(|(labels, value)| (&labels[..], *value)),
    );
    let refused = of_each(|socket| &socket.refused);
    text.counter(
        "socket_refused_connections_total",
        "Connections beyond the limits of a socket.",
        refused.iter().map(|(labels, value)| (&labels[..], *value)),
    );
    text.counter("admin_commands_total", "Admin commands.", [(&[][..], loaded(&counters.commands))]);
}

/// Uses of the keys by local programs.
fn use_metrics(text: &mut Text, snapshot: &Snapshot, counters: &Counters) {
    let mut outcomes = |name, help, words: [&'static str; 2], outcomes: &Outcomes| {
        let samples: Vec<_> = snapshot
            .identities()
            .flat_map(|identity| {
                let name = identity.name.as_str();
                let samples = words.into_iter().zip(outcomes.of(&identity.name));
                samples.map(move |(word, value)| ([("identity", name), ("outcome", word)], value))
            })
            .collect();
        text.counter(name, help, samples.iter().map(|(labels, value)| (&labels[..], *value)));
    };
    outcomes(
        "signatures_total",
        "Signatures for local programs.",
        ["signed", "failed"],
        &counters.signatures,
    );
    outcomes(
        "workload_api_keys_total",
        "Requests for a software key over the Workload API.",
        ["sent", "refused"],
        &counters.keys_sent,
    );
}

type Labels<'a> = &'a [(&'static str, &'a str)];

#[derive(Default)]
struct Text(String);

impl Text {
    /// Writes a gauge with one sample, if it has a value.
    fn one(&mut self, name: &str, help: &str, value: Option<f64>) {
        if let Some(value) = value {
            self.gauge(name, help, [(&[][..], value)]);
        }
    }

    fn gauge<'a>(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = (Labels<'a>, f64)>) {
        self.family(name, help, "gauge", samples);
    }

    fn counter<'a>(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = (Labels<'a>, f64)>) {
        self.family(name, help, "counter", samples);
    }

    /// Label values are the agent's own (versions, names, states, sockets, outcomes) and need no
    /// escaping: no text of a peer or a file becomes one.
    fn family<'a>(
        &mut self,
        name: &str,
        help: &str,
        kind: &str,
        samples: impl IntoIterator<Item = (Labels<'a>, f64)>,
    ) {
        let text = &mut self.0; // writing to a String cannot fail
        let _ = writeln!(text, "# HELP miaf_agent_{name} {help}\n# TYPE miaf_agent_{name} {kind}");
        for (labels, value) in samples {
            let labels: Vec<String> =
                labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let _ = writeln!(text, "miaf_agent_{name}{labels} {value}");
        }
    }
}

fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}

fn seconds(at: Timestamp) -> f64 {
    at.as_millis() as f64 / 1000.0
}

fn loaded(counter: &AtomicU64) -> f64 {
    counter.load(Ordering::Relaxed) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::ProviderKind;
    use miaf_client::api::{EstAuthorization, EstStatus};

    #[test]
    fn metrics_tell_who_needs_a_token_and_who_will() {
        let now = Timestamp::from_rfc3339("2026-01-02T00:00:00Z").unwrap();
        let est = |authorization: EstAuthorization, token_needed, is_near: bool| EstStatus {
            url: None,
            url_source: None,
            authorization: authorization.into(),
            token_source: None,
            has_token: false,
            token_needed,
            token_needed_after: is_near.then_some(now),
            certificate: None,
            tls12_allowed: false,
            standardized: true,
        };
        let mut snapshot = Snapshot::unconfigured(ProviderKind::Tpm);
        let none = text(&snapshot, &Counters::default(), now);
        assert!(!none.contains("token_needed"), "{none}");
        let (token, certificate) = (EstAuthorization::Token, EstAuthorization::Certificate);
        for (name, est) in [
            ("first", est(token, true, false)),
            ("near", est(token, false, true)),
            ("fine", est(token, false, false)),
            ("by-certificate", est(certificate, false, false)),
        ] {
            let name = IdentityName::parse(name).unwrap();
            let identity = IdentitySnapshot::empty(name, State::Active, ProviderKind::Tpm);
            snapshot.other_identities.push(IdentitySnapshot { est: Some(est), ..identity });
        }
        let text = text(&snapshot, &Counters::default(), now);
        for (name, needed, soon) in [("first", 1, 0), ("near", 0, 1), ("fine", 0, 0)] {
            for (metric, value) in [("token_needed", needed), ("token_needed_soon", soon)] {
                let sample = format!("\nmiaf_agent_{metric}{{identity=\"{name}\"}} {value}\n");
                assert!(text.contains(&sample), "{sample:?} is missing from:\n{text}");
            }
        }
        assert_eq!(text.matches("\nmiaf_agent_token_needed").count(), 6, "{text}");
    }
}
