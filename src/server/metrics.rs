//! Metrics for Prometheus (text format 0.0.4): `GET /metrics`, and the same as a file for the node
//! exporter.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::lifecycle::State;
use crate::publish::Snapshot;
use crate::publish::status;
use crate::server::connection_limit::LimitReached;
use crate::server::peer::{Peer, Role};
use miaf_spiffe::time::Timestamp;

/// Media type of the text.
pub(super) const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Counters of what happens on the sockets while the agent runs.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    sockets: [SocketCounters; Role::ALL.len()],
    signatures: AtomicU64,
    failed_signatures: AtomicU64,
    commands: AtomicU64,
    keys_sent: AtomicU64,
    keys_refused: AtomicU64,
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
                "connection refused: {limit}"
            );
        }
    }

    pub(super) fn signature(&self, is_made: bool) {
        count(if is_made { &self.signatures } else { &self.failed_signatures });
    }

    pub(super) fn key_sent(&self) {
        count(&self.keys_sent);
    }

    pub(super) fn key_refused(&self) {
        count(&self.keys_refused);
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

/// Adds one. Returns the value before.
fn count(counter: &AtomicU64) -> u64 {
    counter.fetch_add(1, Ordering::Relaxed)
}

/// All metrics as of `now`.
pub(super) fn text(snapshot: &Snapshot, counters: &Counters, now: Timestamp) -> String {
    let mut text = Text::default();
    device_metrics(&mut text, snapshot, now);
    socket_metrics(&mut text, counters);
    text.0
}

fn device_metrics(text: &mut Text, snapshot: &Snapshot, now: Timestamp) {
    let status = status::status(snapshot, now);
    text.gauge(
        "build_info",
        "Always 1; the version of the agent.",
        [(&[("version", env!("CARGO_PKG_VERSION"))][..], 1.0)],
    );
    let states = State::ALL.map(State::as_str);
    let states = states.map(|state| ([("state", state)], flag(state == status.state)));
    text.gauge(
        "state",
        "1 for the state that the device is in.",
        states.iter().map(|(labels, value)| (&labels[..], *value)),
    );
    text.one(
        "ready",
        "1: there is a valid SVID that the trust bundle vouches for.",
        Some(flag(snapshot.is_ready(now))),
    );
    let svid = snapshot.identity.as_ref().map(|identity| &identity.svid);
    text.one(
        "svid_not_before_timestamp_seconds",
        "Start of the SVID's validity.",
        svid.map(|svid| seconds(svid.not_before())),
    );
    text.one(
        "svid_not_after_timestamp_seconds",
        "End of the SVID's validity, or of an issuer's that it needs, whichever comes first.",
        svid.map(|svid| seconds(svid.until())),
    );
    text.one("svid_renew_at_timestamp_seconds", "When the SVID is renewed.", snapshot.renew_at.map(seconds));
    text.one(
        "svid_ends_while_waiting",
        "1: the MIS has requested a delay (Retry-After) that lasts longer than the SVID.",
        svid.map(|_| flag(snapshot.ends_while_waiting)),
    );
    text.one(
        "key_lost",
        "1: the key of the SVID cannot be used any more.",
        svid.map(|_| flag(snapshot.key_is_lost)),
    );
    let bundle = snapshot.bundle.as_ref();
    text.one(
        "bundle_fetched_timestamp_seconds",
        "When the trust bundle was last known to be current.",
        bundle.map(|current| seconds(current.fetched_at)),
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
        "bundle_remarks",
        "Parts of the trust bundle as served that are not used.",
        bundle.map(|current| current.bundle.warnings().len() as f64),
    );
    text.one(
        "svid_anchor_not_after_timestamp_seconds",
        "End of validity of the trust anchor that vouches for the SVID.",
        snapshot.vouching_anchor_not_after(now).map(seconds),
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
    let error = snapshot.last_error.as_ref();
    text.one("failing", "1: there is an error; the status has it.", Some(flag(error.is_some())));
    text.one(
        "needs_correction",
        "1: the error does not pass by itself.",
        Some(flag(error.is_some_and(|(error, _)| error.permanent))),
    );
    text.one(
        "configuration_rejected",
        "1: the configuration cannot be used, and is not.",
        Some(flag(snapshot.rejects_configuration())),
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
    outcomes(
        text,
        "signatures_total",
        "Signatures for local programs.",
        [("signed", &counters.signatures), ("failed", &counters.failed_signatures)],
    );
    let keys = [("given", &counters.keys_sent), ("refused", &counters.keys_refused)];
    outcomes(text, "workload_api_keys_total", "Requests for a software key over the Workload API.", keys);
    text.counter("orders_total", "Admin commands.", [(&[][..], loaded(&counters.commands))]);
}

fn outcomes(text: &mut Text, name: &str, help: &str, counters: [(&'static str, &AtomicU64); 2]) {
    let values = counters.map(|(outcome, value)| ([("outcome", outcome)], loaded(value)));
    text.counter(name, help, values.iter().map(|(labels, value)| (&labels[..], *value)));
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

    /// Label values are the agent's own (versions, states, sockets, outcomes) and need no escaping:
    /// no text of a peer or a file becomes one.
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
