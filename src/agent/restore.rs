//! Starting: what the process before left behind, read back. Nothing is contacted, neither the MIS nor the chip.

use std::sync::Arc;
use std::time::Duration;

use super::device::{Device, HeldDiscovery, KeptBundle, forget};
use super::failures::Spoken;
use super::identity::{held_identity, svid_facts};
use super::trust::{bundle_facts, discovered};
use crate::config::Config;
use crate::deliver::Identity;
use crate::deliver::files::Publisher;
use crate::keys::tpm::Tpm;
use crate::lifecycle::{KeyChoice, Lifecycle, Policy, Restored, Retry, Waits};
use crate::mis::{Discovery, Mis};
use crate::spiffe::Bundle;
use crate::spiffe::svid::{Chain, X509Svid};
use crate::store::{self, Store};
use crate::system::{clock, random};
use crate::time::Now;

impl Device {
    /// Takes up where the last process left off. Nothing is contacted, neither the MIS nor the chip.
    pub(super) async fn restore(config: Config, now: Now) -> Self {
        let store = Store::new(&config.state_dir);
        let tpm = Tpm::start(config.key.tcti.clone());
        let trust = config.mis.as_ref().map(|mis| mis.trust.clone()).unwrap_or_default();
        let discovery = load(&store).and_then(|cached| read_discovery(cached, &config));
        let identity = load(&store)
            .and_then(|record| read_identity(&store, &record, &tpm).map(|identity| (identity, record)));
        let (identity, record) = identity.unzip();
        let bundle =
            load(&store).and_then(|cached| read_bundle(cached, discovery.as_ref(), identity.as_ref()));
        let (pending, answer) = load_unfinished(&store, record.as_ref());
        let cached: store::CachedWaits = load(&store).unwrap_or_default();
        let waits = read_waits(&cached, now);
        let renew_at = record.as_ref().and_then(|record| record.renew_at);
        let restored = Restored {
            discovery: discovery.as_ref().map(|held| discovered(&held.document, false)),
            bundle: bundle.as_ref().map(|kept| bundle_facts(&kept.bundle)),
            svid: identity.as_ref().map(|identity| svid_facts(&identity.svid, renew_at, KeyChoice::Current)),
            pending_key: pending.is_some(),
            answer: answer.is_some(),
            waits,
            waits_because: cached.reason,
            admission_pending: cached.admission_pending,
        };
        let lifecycle = Lifecycle::new(policy(&config), restored, now, &mut random::unit);
        let mut device = Self {
            store,
            mis: Mis::new(trust),
            tpm,
            lifecycle,
            discovery,
            bundle,
            identity: identity.map(Arc::new),
            pending,
            answer,
            stored_renew_at: renew_at,
            stored_waits: waits,
            bootstrap_not_after: None,
            publisher: Publisher::new(&config.files),
            told: None,
            spoken: Spoken::default(),
            config,
        };
        match device.factory_credential().await {
            Ok(_) => {}
            Err(failure) => {
                tracing::warn!(problem = failure.report.detail, "no enrollment is possible for now")
            }
        }
        device
    }
}

fn policy(config: &Config) -> Policy {
    Policy {
        window: config.renewal_window,
        retry: Retry { base: config.retry_base, cap: config.retry_cap },
        bundle_refresh: config.bundle_refresh,
        rotate: config.key.rotate,
    }
}

fn load<R: store::Record>(store: &Store) -> Option<R> {
    store.load().unwrap_or_else(|e| {
        tracing::error!(error = %e, "a part of the agent's state cannot be read");
        None
    })
}

fn read_discovery(cached: store::CachedDiscovery, config: &Config) -> Option<HeldDiscovery> {
    let mis = config.mis.as_ref()?;
    let document = Discovery::from_json(&cached.body).ok()?;
    let wanted = cached.url == mis.discovery_url.as_str()
        && mis.trust_domain.as_ref().is_none_or(|domain| domain == document.trust_domain());
    wanted.then_some(HeldDiscovery { document, cached })
}

fn read_identity(store: &Store, record: &store::Identity, tpm: &Tpm) -> Option<Identity> {
    let unusable = |why: String| {
        store.set_aside::<store::Identity>(&why);
        None
    };
    let svid = match Chain::from_pem(&record.chain).and_then(X509Svid::from_stored) {
        Ok(svid) => svid,
        Err(why) => return unusable(why.to_string()),
    };
    match tpm.key_from_pem(&record.key) {
        Ok(key) => Some(held_identity(svid, &key, record.key.clone())),
        Err(why) => unusable(why.to_string()),
    }
}

/// A bundle of another trust domain than the device is in, or is going to be in, is of no use.
fn read_bundle(
    cached: store::CachedBundle,
    discovery: Option<&HeldDiscovery>,
    identity: Option<&Identity>,
) -> Option<KeptBundle> {
    let ours = match (discovery, identity) {
        (Some(held), _) => held.document.trust_domain(),
        (None, Some(identity)) => identity.svid.spiffe_id().trust_domain(),
        (None, None) => return None,
    };
    let bundle = Bundle::from_served(cached.body.as_bytes(), &cached.trust_domain).ok()?;
    (cached.trust_domain == *ours).then(|| KeptBundle { bundle: Arc::new(bundle), cached })
}

/// What an interrupted process left between an answer and its adoption. If the identity was stored but the records
/// before it were not removed yet, they are now.
fn load_unfinished(
    store: &Store,
    identity: Option<&store::Identity>,
) -> (Option<store::Pending>, Option<store::Answer>) {
    let mut pending: Option<store::Pending> = load(store);
    let mut answer: Option<store::Answer> = load(store);
    if let Some(identity) = identity {
        if answer.as_ref().is_some_and(|answer| answer.chain == identity.chain) {
            forget::<store::Answer>(store);
            answer = None;
        }
        if pending.as_ref().is_some_and(|pending| pending.key == identity.key) {
            forget::<store::Pending>(store);
            pending = None;
        }
    }
    if answer
        .as_ref()
        .is_some_and(|answer| if answer.for_pending_key { pending.is_none() } else { identity.is_none() })
    {
        store.set_aside::<store::Answer>("the key that it was issued for is gone");
        answer = None;
    }
    (pending, answer)
}

/// Within the same boot a wait ends on the boot clock, whatever became of the wall clock; after a reboot the wall clock
/// is all there is, and it may be wrong.
fn read_waits(cached: &store::CachedWaits, now: Now) -> Waits {
    let same_boot = cached.boot_id == clock::boot_id();
    let end = |wait: store::Wait| match same_boot {
        true => wait.boot,
        false => now.boot.after(now.wall.until(wait.wall).min(Duration::from_millis(wait.left))),
    };
    Waits {
        discovery: cached.discovery.map(end),
        bundle: cached.bundle.map(end),
        identity: cached.identity.map(end),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::{BootTime, Timestamp};

    const HOUR: Duration = Duration::from_secs(3600);

    fn waits(boot_id: String, now: Now) -> Waits {
        let wait = store::Wait {
            boot: BootTime::from_millis(9_000_000),
            wall: Timestamp::from_secs(1_800_003_600),
            left: 3_600_000,
        };
        read_waits(&store::CachedWaits { boot_id, identity: Some(wait), ..Default::default() }, now)
    }

    #[test]
    fn a_wait_survives_a_restart_and_a_reboot_and_a_wrong_clock_does_not_stretch_it() {
        let boot = BootTime::from_millis(1000);
        let at = |secs| Now { wall: Timestamp::from_secs(secs), boot };
        let same_boot = waits(clock::boot_id(), at(0));
        assert_eq!(same_boot.identity, Some(BootTime::from_millis(9_000_000)));
        let rebooted = |secs| boot.until(waits("another".into(), at(secs)).identity.unwrap());
        assert_eq!(rebooted(1_800_000_000), HOUR, "at once");
        assert_eq!(rebooted(1_800_001_800), HOUR / 2, "half of it was spent switched off");
        assert_eq!(rebooted(1_900_000_000), Duration::ZERO, "it is long over");
        assert_eq!(rebooted(0), HOUR, "a clock at 1970 makes it no longer than it was");
    }
}
