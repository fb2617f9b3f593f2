//! Figures for Prometheus (text format 0.0.4): `GET /metrics`, and the same as a file for the node exporter.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::lifecycle::State;
use crate::publish::Snapshot;
use crate::publish::status::Status;
use crate::server::connection_limit::Full;
use crate::server::peer::{Caller, Right};
use crate::time::Timestamp;

/// The media type of the text.
pub(super) const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What is counted while the agent runs.
#[derive(Debug, Default)]
pub struct Counters {
    sockets: [SocketCounters; Right::ALL.len()],
    signed: AtomicU64,
    not_signed: AtomicU64,
    orders: AtomicU64,
    keys_given: AtomicU64,
    keys_refused: AtomicU64,
}

#[derive(Debug, Default)]
struct SocketCounters {
    requests: AtomicU64,
    refused: AtomicU64,
}

impl Counters {
    pub(super) fn asked(&self, caller: Caller) {
        count(&self.of(caller.right).requests);
    }

    pub(super) fn refused(&self, caller: Caller, full: Full) {
        if count(&self.of(caller.right).refused) == 0 {
            // Once: the figure tells the rest.
            tracing::warn!(
                uid = caller.uid,
                pid = caller.pid,
                socket = caller.right.as_str(),
                "a connection is refused: {full}"
            );
        }
    }

    pub(super) fn signed(&self, is_signed: bool) {
        count(if is_signed { &self.signed } else { &self.not_signed });
    }

    pub(super) fn key_given(&self) {
        count(&self.keys_given);
    }

    pub(super) fn key_refused(&self) {
        count(&self.keys_refused);
    }

    pub(super) fn ordered(&self) {
        count(&self.orders);
    }

    fn of(&self, right: Right) -> &SocketCounters {
        let [agent, sign, admin] = &self.sockets;
        match right {
            Right::Read => agent,
            Right::Sign => sign,
            Right::Admin => admin,
        }
    }
}

/// One more. What it was before.
fn count(counter: &AtomicU64) -> u64 {
    counter.fetch_add(1, Ordering::Relaxed)
}

/// All figures as of `now`.
pub(super) fn text(snapshot: &Snapshot, counters: &Counters, now: Timestamp) -> String {
    let mut text = Text::default();
    of_the_device(&mut text, snapshot, now);
    of_the_sockets(&mut text, counters);
    text.0
}

fn of_the_device(text: &mut Text, snapshot: &Snapshot, now: Timestamp) {
    let status = Status::of(snapshot, now);
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
        "1: the MIS asked for a wait that lasts longer than the SVID.",
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
        bundle.map(|held| seconds(held.fetched_at)),
    );
    text.one(
        "bundle_anchors",
        "Certificates in the trust bundle.",
        bundle.map(|held| held.bundle.anchors().len() as f64),
    );
    text.one(
        "bundle_anchors_not_valid",
        "Certificates in the trust bundle whose validity has ended or not begun.",
        bundle.map(|held| held.bundle.anchors_out_of_validity(now).count() as f64),
    );
    text.one(
        "bundle_remarks",
        "Parts of the trust bundle as served that are not used.",
        bundle.map(|held| held.bundle.warnings().len() as f64),
    );
    text.one(
        "svid_anchor_not_after_timestamp_seconds",
        "End of validity of the trust anchor that vouches for the SVID.",
        snapshot.vouching_anchor_not_after(now).map(seconds),
    );
    text.one(
        "bundle_sequence",
        "Sequence number of the trust bundle.",
        bundle.and_then(|held| held.bundle.sequence()).map(|sequence| sequence as f64),
    );
    let factory = snapshot.bootstrap.as_ref();
    text.one(
        "factory_certificate_not_after_timestamp_seconds",
        "End of the factory certificate's validity.",
        factory.map(|facts| seconds(facts.not_after)),
    );
    let error = snapshot.last_error.as_ref();
    text.one("failing", "1: something is wrong; the status says what.", Some(flag(error.is_some())));
    text.one(
        "needs_correction",
        "1: what is wrong does not pass by itself.",
        Some(flag(error.is_some_and(|(error, _)| error.permanent))),
    );
    text.one(
        "configuration_rejected",
        "1: the configuration that is there cannot be used, and is not.",
        Some(flag(snapshot.rejects_configuration())),
    );
}

fn of_the_sockets(text: &mut Text, counters: &Counters) {
    let of_each = |figure: fn(&SocketCounters) -> &AtomicU64| {
        Right::ALL.map(|right| ([("socket", right.as_str())], loaded(figure(counters.of(right)))))
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
    of_two(
        text,
        "signatures_total",
        "Signatures for local programs.",
        [("signed", &counters.signed), ("failed", &counters.not_signed)],
    );
    let keys = [("given", &counters.keys_given), ("refused", &counters.keys_refused)];
    of_two(text, "workload_api_keys_total", "Software keys asked for over the Workload API.", keys);
    text.counter("orders_total", "Orders that an operator gave.", [(&[][..], loaded(&counters.orders))]);
}

fn of_two(text: &mut Text, name: &str, help: &str, outcomes: [(&'static str, &AtomicU64); 2]) {
    let values = outcomes.map(|(outcome, value)| ([("outcome", outcome)], loaded(value)));
    text.counter(name, help, values.iter().map(|(labels, value)| (&labels[..], *value)));
}

type Labels<'a> = &'a [(&'static str, &'a str)];

#[derive(Default)]
struct Text(String);

impl Text {
    /// Nothing at all where there is nothing to tell.
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

    /// Label values are ours (versions, states, sockets, outcomes) and need no escaping: nothing that a peer or a file
    /// says becomes one.
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
