//! The parts of a status as text, for readers who do not know SPIFFE.

use std::time::{Duration, SystemTime};

use crate::lifecycle::State;
use miaf_client::api::{ErrorStatus, Status, TrustStatus};

/// Describes the state in a sentence.
pub(super) fn meaning(state: &str) -> &'static str {
    let known = State::ALL.into_iter().find(|known| known.as_str() == state);
    known.map_or("unknown to this command; the agent is newer", State::meaning)
}

/// Describes the key and its protection.
pub(super) fn key(status: &Status) -> String {
    let protection = match status.key.protection.as_deref() {
        Some("hardware") => "in this device's TPM; it cannot be copied out",
        Some("software-isolated") => "in software, sealed with a credential of systemd",
        Some("software-basic") => "in software, sealed with a key in the same directory",
        Some(_) => "with a protection unknown to this command",
        None => return format!("none yet (provider: {})", status.key.provider),
    };
    let algorithm = status.key.algorithm.as_deref().unwrap_or_default();
    if status.key.lost {
        format!("{algorithm}, lost: this device cannot use it any more")
    } else {
        format!("{algorithm} {protection}")
    }
}

/// Describes what authenticates the MIS.
pub(super) fn trusted_by(trust: &TrustStatus) -> String {
    let file =
        trust.ca_file.as_ref().map(|file| format!("the CA certificates in {file} ({})", trust.anchors));
    let system = trust.system_roots.then(|| "the CA certificates of the system".to_owned());
    let pins = match trust.pins {
        0 => None,
        1 => Some("1 pinned key".to_owned()),
        more => Some(format!("{more} pinned keys")),
    };
    let anchors: Vec<String> = file.into_iter().chain(system).collect();
    // One of the sets of anchors suffices; a pin must match in addition.
    let all: Vec<String> =
        Some(anchors.join(" or ")).filter(|a| !a.is_empty()).into_iter().chain(pins).collect();
    format!("by {}", all.join(", and "))
}

/// Formats the error in one line.
pub(super) fn error(error: &ErrorStatus) -> String {
    match &error.detail {
        Some(detail) => format!("{}: {detail}", error.title),
        None => error.title.clone(),
    }
}

/// The next step: the agent's own ("none: ...") or the operator's.
pub(super) fn next_step(status: &Status, now: SystemTime) -> String {
    let again = |error: &ErrorStatus| error.retry_at.as_deref().map(|at| due(at, now));
    match (&status.last_error, status.state.as_str()) {
        (Some(error), _) if error.kind == "urn:miaf-agent:error:key-lost" => {
            error.hint.clone().unwrap_or_else(|| "replace the key with: miaf-agent retry --new-key".into())
        }
        (Some(error), _) if error.kind == "urn:miaf-agent:error:configuration" => {
            "correct the configuration; the agent reloads it by itself. To check it: miaf-agent check-config".into()
        }
        (Some(error), "waiting-for-clock") => {
            let hint = error.hint.as_deref().unwrap_or("set the clock of this device");
            format!("{hint}; the agent checks it again {}", again(error).unwrap_or_else(|| "soon".into()))
        }
        (error, "pending-admission") => {
            let again = error.as_ref().and_then(again);
            let again = again.map_or_else(String::new, |again| format!("; the agent tries again {again}"));
            format!("have the operator of the MIS admit this device, by its factory certificate{again}")
        }
        (Some(error), _) if status.svid.as_ref().is_some_and(|svid| svid.ends_while_waiting) => {
            let until = error.waits_until.as_deref().map(|until| due(until, now));
            format!(
                "ask the operator of the MIS to raise its limit: the retry-after delay of the MIS ends {}, after the \
                 identity. The agent tries again {}, and no admin command makes it try earlier",
                until.unwrap_or_else(|| "later".into()),
                again(error).unwrap_or_else(|| "then".into())
            )
        }
        (Some(error), _) => match (again(error), error.permanent) {
            (Some(again), false) if error.hint.is_some() => {
                format!("{}; the agent tries again {again}", error.hint.as_deref().unwrap_or_default())
            }
            (Some(again), true) => format!("correct that; the agent checks again {again}"),
            (Some(again), false) => format!("none: the agent tries again {again}"),
            (None, _) => "correct that, at the MIS or in the configuration; or have the agent try again: miaf-agent retry".into(),
        },
        (None, "unconfigured") => "set the address of the MIS in the configuration".into(),
        (None, "active") => match status.svid.as_ref().and_then(|svid| svid.renew_at.as_deref()) {
            Some(renew_at) => match difference(renew_at, now) {
                Some(Difference::Past(_)) => {
                    format!("none: renewal is due since {renew_at}, and the agent renews the identity by itself")
                }
                _ => format!("none: the agent renews the identity {}", due(renew_at, now)),
            },
            None => "none: the agent renews the identity by itself".into(),
        },
        (None, "blocked") => "read the log of the agent: journalctl --unit miaf-agent".into(),
        (None, _) => "none: the agent goes on by itself".into(),
    }
}

/// A moment relative to now: "in 3h 20m", "5m ago".
pub(super) fn distance(rfc3339: &str, now: SystemTime) -> String {
    match difference(rfc3339, now) {
        Some(Difference::Past(elapsed)) => format!("{} ago", approximate(elapsed)),
        _ => due(rfc3339, now),
    }
}

/// The moment of something that the agent has scheduled: "in 3h 20m". One that has passed is now:
/// the agent is doing it.
pub(super) fn due(rfc3339: &str, now: SystemTime) -> String {
    match difference(rfc3339, now) {
        None => UNKNOWN_TIME.into(),
        Some(Difference::Future(left)) => format!("in {}", approximate(left)),
        Some(Difference::Now | Difference::Past(_)) => "now".into(),
    }
}

/// The moment of the renewal: "in 3h 20m", or "due for 5m" once it has passed. Without the MIS,
/// that can be long ago.
pub(super) fn renewal(rfc3339: &str, now: SystemTime) -> String {
    match difference(rfc3339, now) {
        Some(Difference::Past(elapsed)) => format!("due for {}", approximate(elapsed)),
        _ => due(rfc3339, now),
    }
}

const UNKNOWN_TIME: &str = "at an unknown time";

/// Where a moment is, relative to now.
enum Difference {
    Past(Duration),
    /// About to be, or just passed.
    Now,
    Future(Duration),
}

fn difference(rfc3339: &str, now: SystemTime) -> Option<Difference> {
    /// Smaller differences count as none.
    const MIN: Duration = Duration::from_secs(2);
    let moment = humantime::parse_rfc3339_weak(rfc3339).ok()?;
    Some(match moment.duration_since(now) {
        Ok(left) if left >= MIN => Difference::Future(left),
        Err(e) if e.duration() >= MIN => Difference::Past(e.duration()),
        _ => Difference::Now,
    })
}

/// Formats a duration by its two largest units.
pub(super) fn approximate(duration: Duration) -> String {
    let exact = humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string();
    exact.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use miaf_client::api::{BootstrapKeyStatus, BootstrapStatus, KeyStatus, SvidStatus, WindowStatus};

    /// A device whose renewal fails for the moment, and the time it is.
    pub(in crate::cli) fn example() -> (Status, SystemTime) {
        let status = Status {
            state: "renewing".into(),
            trust_domain: Some("factory.example".into()),
            spiffe_id: Some("spiffe://factory.example/margo/device/x".into()),
            svid: Some(SvidStatus {
                serial: "01:02".into(),
                not_before: "2026-01-01T00:00:00Z".into(),
                not_after: "2026-01-03T00:00:00Z".into(),
                leaf_not_after: None,
                ends_while_waiting: false,
                renew_at: Some("2026-01-01T23:00:00Z".into()),
                renewal_window: Some(WindowStatus {
                    from: "2026-01-01T19:12:00Z".into(),
                    to: "2026-01-02T04:48:00Z".into(),
                }),
            }),
            key: KeyStatus {
                provider: "tpm".into(),
                protection: Some("hardware".into()),
                algorithm: Some("ecdsa-p256".into()),
                lost: false,
            },
            bundle: None,
            bootstrap: Some(BootstrapStatus {
                not_before: "2025-01-01T00:00:00Z".into(),
                not_after: "2035-01-01T00:00:00Z".into(),
                sha256: "5e".repeat(32),
                key: BootstrapKeyStatus { algorithm: "rsa-2048".into(), in_tpm: true },
            }),
            initial_trust: Some(TrustStatus {
                ca_file: Some("/etc/ca.pem".into()),
                anchors: 2,
                pins: 2,
                system_roots: true,
            }),
            last_error: Some(ErrorStatus {
                kind: "about:blank".into(),
                title: "Service Unavailable".into(),
                status: Some(503),
                detail: Some("The database is away.".into()),
                instance: Some("urn:x".into()),
                at: "2026-01-02T00:00:00Z".into(),
                retry_at: Some("2026-01-02T00:05:00Z".into()),
                waits_until: None,
                hint: None,
                permanent: false,
            }),
        };
        (status, humantime::parse_rfc3339("2026-01-02T00:01:00Z").unwrap())
    }

    #[test]
    fn next_step_is_the_agents_or_the_operators() {
        let (status, now) = example();
        let with = |state: &str, change: &dyn Fn(&mut ErrorStatus)| {
            let mut status = Status { state: state.into(), ..status.clone() };
            change(status.last_error.as_mut().unwrap());
            next_step(&status, now)
        };
        assert_eq!(with("renewing", &|_| {}), "none: the agent tries again in 4m");
        assert_eq!(with("blocked", &|e| e.permanent = true), "correct that; the agent checks again in 4m");
        assert!(with("blocked", &|e| e.retry_at = None).ends_with("try again: miaf-agent retry"));
        let lost = |e: &mut ErrorStatus| e.kind = "urn:miaf-agent:error:key-lost".into();
        assert!(with("blocked", &lost).ends_with("miaf-agent retry --new-key"));
        let clock = with("waiting-for-clock", &|e| e.hint = Some("set the clock".into()));
        assert_eq!(clock, "set the clock; the agent checks it again in 4m");
        let configuration = |e: &mut ErrorStatus| e.kind = "urn:miaf-agent:error:configuration".into();
        assert!(with("active", &configuration).ends_with("miaf-agent check-config"));
        let pending = with("pending-admission", &|_| {});
        assert!(
            pending.starts_with("have the operator") && pending.ends_with("tries again in 4m"),
            "{pending}"
        );

        let hinted = with("renewing", &|e| e.hint = Some("ask the operator".into()));
        assert_eq!(hinted, "ask the operator; the agent tries again in 4m");
        let mut waiting = status.clone();
        waiting.svid.as_mut().unwrap().ends_while_waiting = true;
        let error = waiting.last_error.as_mut().unwrap();
        error.waits_until = Some("2026-01-04T00:01:00Z".into());
        error.retry_at = Some("2026-01-04T00:31:00Z".into());
        let step = next_step(&waiting, now);
        for part in ["ask the operator of the MIS", "in 2days", "tries again in 2days 30m"] {
            assert!(step.contains(part), "{part:?} is missing from: {step}");
        }

        let fine =
            |state: &str| next_step(&Status { state: state.into(), last_error: None, ..status.clone() }, now);
        assert!(fine("unconfigured").contains("configuration"));
        for state in State::ALL {
            assert!(!fine(state.as_str()).is_empty(), "{state}");
        }
    }

    #[test]
    fn next_step_is_never_in_the_past() {
        let (mut status, now) = example();
        status.svid.as_mut().unwrap().ends_while_waiting = true;
        let past = Some("2026-01-01T20:00:00Z".to_owned());
        let error = status.last_error.as_mut().unwrap();
        (error.retry_at, error.waits_until) = (past.clone(), past.clone());
        let permanent = ErrorStatus { permanent: true, ..error.clone() };
        let hinted = ErrorStatus { hint: Some("ask the operator".into()), ..error.clone() };
        let errors = [Some(error.clone()), Some(permanent), Some(hinted), None];
        for (state, last_error) in State::ALL.iter().flat_map(|state| errors.iter().map(move |e| (state, e)))
        {
            for (ends_while_waiting, renew_at) in [(true, &past), (false, &past)] {
                let mut status =
                    Status { state: state.as_str().into(), last_error: last_error.clone(), ..status.clone() };
                let svid = status.svid.as_mut().unwrap();
                (svid.ends_while_waiting, svid.renew_at) = (ends_while_waiting, renew_at.clone());
                let step = next_step(&status, now);
                assert!(!step.contains(" ago"), "{state}: {step}");
            }
        }
    }

    #[test]
    fn renewal_that_is_due_is_shown_as_due() {
        let (status, now) = example();
        let active = |renew_at: &str| {
            let svid = SvidStatus { renew_at: Some(renew_at.into()), ..status.svid.clone().unwrap() };
            let status =
                Status { state: "active".into(), last_error: None, svid: Some(svid), ..status.clone() };
            (next_step(&status, now), renewal(renew_at, now))
        };
        let (step, moment) = active("2026-01-01T23:00:00Z");
        assert!(step.starts_with("none: renewal is due since 2026-01-01T23:00:00Z, and "), "{step}");
        assert_eq!(moment, "due for 1h 1m");
        for (renew_at, shown) in [("2026-01-02T00:01:00Z", "now"), ("2026-01-02T03:21:00Z", "in 3h 20m")] {
            let (step, moment) = active(renew_at);
            assert_eq!(step, format!("none: the agent renews the identity {shown}"));
            assert_eq!(moment, shown);
        }
    }

    #[test]
    fn distance_has_two_units_and_near_is_now() {
        let (_, now) = example();
        for (moment, shown) in [
            ("2026-01-02T00:01:01Z", "now"),
            ("2026-01-02T00:00:59Z", "now"),
            ("2026-01-02T00:04:05Z", "in 3m 5s"),
            ("2025-12-30T20:00:59Z", "2days 4h ago"),
            ("yesterday", "at an unknown time"),
        ] {
            assert_eq!(distance(moment, now), shown, "{moment}");
        }
    }
}
