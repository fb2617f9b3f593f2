//! What there is to say, in the words of people who have never heard of SPIFFE.

use std::time::{Duration, SystemTime};

use crate::lifecycle::State;
use crate::publish::status::{ErrorStatus, Status, TrustStatus};

/// The state in a sentence.
pub(super) fn meaning(state: &str) -> &'static str {
    let known = State::ALL.into_iter().find(|known| known.as_str() == state);
    known.map_or("a newer agent than this command is running", State::meaning)
}

/// Where the key is.
pub(super) fn key(status: &Status) -> String {
    let place = match status.key.protection.as_deref() {
        Some("hardware") => "in this device's TPM; it cannot be copied out",
        Some("software-isolated") => "in software, sealed with a key that the system keeps",
        Some("software-basic") => "in software, sealed with a key beside it",
        Some(_) => "kept in a way that this command does not know",
        None => return format!("none yet (provider: {})", status.key.provider),
    };
    let algorithm = status.key.algorithm.as_deref().unwrap_or_default();
    if status.key.lost {
        format!("{algorithm}, lost: this device cannot use it any more")
    } else {
        format!("{algorithm} {place}")
    }
}

/// What authenticates the MIS.
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
    // Either set of anchors will do; a pin must hold besides.
    let all: Vec<String> =
        Some(anchors.join(" or ")).filter(|a| !a.is_empty()).into_iter().chain(pins).collect();
    format!("by {}", all.join(", and "))
}

/// The error in one line.
pub(super) fn error(error: &ErrorStatus) -> String {
    match &error.detail {
        Some(detail) => format!("{}: {detail}", error.title),
        None => error.title.clone(),
    }
}

/// What comes next: of itself, or by somebody's hand.
pub(super) fn next_step(status: &Status, now: SystemTime) -> String {
    let again = |error: &ErrorStatus| error.retry_at.as_deref().map(|at| distance(at, now));
    match (&status.last_error, status.state.as_str()) {
        (Some(error), _) if error.kind == "urn:miaf-agent:error:key-lost" => {
            error.hint.clone().unwrap_or_else(|| "replace the key with: miaf-agent retry --new-key".into())
        }
        (Some(error), _) if error.kind == "urn:miaf-agent:error:configuration" => {
            "correct the configuration: the agent notices by itself. To see whether it can be used: miaf-agent check-config".into()
        }
        (Some(error), "waiting-for-clock") => {
            let hint = error.hint.as_deref().unwrap_or("set the clock of this device");
            format!("{hint}; the agent checks it again {}", again(error).unwrap_or_else(|| "soon".into()))
        }
        (error, "pending-admission") => {
            let again = error.as_ref().and_then(again);
            let again = again.map_or_else(String::new, |again| format!("; the agent asks again {again}"));
            format!("have the operator of the MIS admit this device, by its factory certificate{again}")
        }
        (Some(error), _) if status.svid.as_ref().is_some_and(|svid| svid.ends_while_waiting) => {
            let until = error.waits_until.as_deref().map(|until| distance(until, now));
            format!(
                "ask the operator of the MIS to raise its limit: it asked this device not to ask again before a time {}, \
                 and the identity ends before that. The agent asks again {}, and no order makes it ask earlier",
                until.unwrap_or_else(|| "still to come".into()),
                again(error).unwrap_or_else(|| "then".into())
            )
        }
        (Some(error), _) => match (again(error), error.permanent) {
            (Some(again), false) if error.hint.is_some() => {
                format!("{}; the agent tries again {again}", error.hint.as_deref().unwrap_or_default())
            }
            (Some(again), true) => format!("correct that; the agent looks again {again}"),
            (Some(again), false) => format!("none: the agent tries again {again}"),
            (None, _) => "correct that, at the MIS or in the configuration; or have the agent try again: miaf-agent retry".into(),
        },
        (None, "unconfigured") => "set [mis] in the agent's configuration; it goes on by itself then".into(),
        (None, "active") => match status.svid.as_ref().and_then(|svid| svid.renew_at.as_deref()) {
            // Its moment may have passed since the snapshot, or while the agent does something else.
            Some(renew_at) if is_past(renew_at, now) => "none: the agent renews the identity now".into(),
            Some(renew_at) => format!("none: the agent renews the identity {}", distance(renew_at, now)),
            None => "none: the agent renews the identity by itself".into(),
        },
        (None, "blocked") => "read what the agent says of it: journalctl --unit miaf-agent".into(),
        (None, _) => "none: the agent goes on by itself".into(),
    }
}

/// "in 3h 20m", "5m ago".
pub(super) fn distance(rfc3339: &str, now: SystemTime) -> String {
    let Ok(moment) = humantime::parse_rfc3339_weak(rfc3339) else { return "at an unknown time".into() };
    match moment.duration_since(now) {
        // It is about to be done, or was just now.
        Ok(near) if near < NOW => "now".into(),
        Err(near) if near.duration() < NOW => "now".into(),
        Ok(ahead) => format!("in {}", rough(ahead)),
        Err(behind) => format!("{} ago", rough(behind.duration())),
    }
}

fn is_past(rfc3339: &str, now: SystemTime) -> bool {
    humantime::parse_rfc3339_weak(rfc3339).is_ok_and(|moment| moment < now)
}

/// What is nearer than this is not told apart.
const NOW: Duration = Duration::from_secs(2);

/// The two largest units say enough.
pub(super) fn rough(duration: Duration) -> String {
    let exact = humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string();
    exact.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::publish::status::{BootstrapKeyStatus, BootstrapStatus, KeyStatus, SvidStatus, WindowStatus};

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
    fn the_next_step_is_the_agent_s_or_somebody_s() {
        let (status, now) = example();
        let with = |state: &str, change: &dyn Fn(&mut ErrorStatus)| {
            let mut status = Status { state: state.into(), ..status.clone() };
            change(status.last_error.as_mut().unwrap());
            next_step(&status, now)
        };
        assert_eq!(with("renewing", &|_| {}), "none: the agent tries again in 4m");
        assert_eq!(with("blocked", &|e| e.permanent = true), "correct that; the agent looks again in 4m");
        assert!(with("blocked", &|e| e.retry_at = None).ends_with("try again: miaf-agent retry"));
        let lost = |e: &mut ErrorStatus| e.kind = "urn:miaf-agent:error:key-lost".into();
        assert!(with("blocked", &lost).ends_with("miaf-agent retry --new-key"));
        let clock = with("waiting-for-clock", &|e| e.hint = Some("set the clock".into()));
        assert_eq!(clock, "set the clock; the agent checks it again in 4m");
        let configuration = |e: &mut ErrorStatus| e.kind = "urn:miaf-agent:error:configuration".into();
        assert!(with("active", &configuration).ends_with("miaf-agent check-config"));
        let pending = with("pending-admission", &|_| {});
        assert!(
            pending.starts_with("have the operator") && pending.ends_with("asks again in 4m"),
            "{pending}"
        );

        let hinted = with("renewing", &|e| e.hint = Some("ask the operator".into()));
        assert_eq!(hinted, "ask the operator; the agent tries again in 4m");
        let mut waiting = status.clone();
        waiting.svid.as_mut().unwrap().ends_while_waiting = true;
        let error = waiting.last_error.as_mut().unwrap();
        error.waits_until = Some("2026-01-04T00:01:00Z".into());
        error.retry_at = Some("2026-01-04T00:31:00Z".into());
        let told = next_step(&waiting, now);
        for said in ["ask the operator of the MIS", "in 2days", "asks again in 2days 30m"] {
            assert!(told.contains(said), "{said:?} is missing from: {told}");
        }

        let fine =
            |state: &str| next_step(&Status { state: state.into(), last_error: None, ..status.clone() }, now);
        assert_eq!(
            fine("active"),
            "none: the agent renews the identity now",
            "what is overdue is no news of the past"
        );
        let mut ahead = Status { state: "active".into(), last_error: None, ..status.clone() };
        ahead.svid.as_mut().unwrap().renew_at = Some("2026-01-02T01:01:00Z".into());
        assert_eq!(next_step(&ahead, now), "none: the agent renews the identity in 1h");
        assert!(fine("unconfigured").contains("configuration"));
        for state in State::ALL {
            assert!(!fine(state.as_str()).is_empty(), "{state}");
        }
    }

    #[test]
    fn a_distance_is_rough_and_near_is_now() {
        let (_, now) = example();
        for (moment, said) in [
            ("2026-01-02T00:01:01Z", "now"),
            ("2026-01-02T00:00:59Z", "now"),
            ("2026-01-02T00:04:05Z", "in 3m 5s"),
            ("2025-12-30T20:00:59Z", "2days 4h ago"),
            ("yesterday", "at an unknown time"),
        ] {
            assert_eq!(distance(moment, now), said, "{moment}");
        }
    }
}
