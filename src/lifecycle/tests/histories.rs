//! Random histories: what happens to a device with three identities, one turn after the other.

use proptest::prelude::*;

use super::super::*;
use super::device::*;

#[derive(Clone, Debug)]
pub(super) struct Turn {
    pub(super) passes: Passes,
    pub(super) reply: Reply,
    pub(super) luck: f64,
    pub(super) restart: Option<Restart>,
    pub(super) command: Option<Command>,
    /// The TPM that the key of one identity is in is taken away, or put back.
    pub(super) tpm: Option<(usize, bool)>,
    /// An operator supplies something, also where none is expected to.
    pub(super) supplied: Option<(usize, Supplied)>,
    /// A time service sets the wall clock, or it is not known any more that one has.
    pub(super) synchronised: Option<bool>,
    /// What the MIS says the time is, in seconds from what it is.
    pub(super) proof: Option<i64>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Restart {
    OfTheAgent,
    /// The boot clock begins anew.
    OfTheMachine,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Passes {
    Nothing,
    UntilWakeUp,
    Some(Duration),
}

/// What happens next, whatever the action under way is: [`Checker`] makes it fit.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    /// How far the wall clock is off from now on, in seconds.
    pub(super) wall_off: Option<i64>,
    pub(super) kind: Kind,
    pub(super) changed: bool,
    pub(super) cannot_enroll: bool,
    pub(super) cannot_renew: bool,
    pub(super) refresh_hint: Option<Duration>,
    pub(super) vouches: Option<bool>,
    /// Under this bundle the SVID held lasts half as long.
    pub(super) ends_sooner: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Good,
    Fails(FailureKind, Option<Duration>),
    Early(u64),
    UnknownIssuer,
    IssuerExpired,
    NoPath,
    Refused,
}

pub(super) fn turn() -> impl Strategy<Value = Turn> {
    let passes = prop_oneof![
        2 => Just(Passes::Nothing),
        6 => Just(Passes::UntilWakeUp),
        2 => (0..100_000_u64).prop_map(|ms| Passes::Some(Duration::from_millis(ms))),
        1 => (0..1_000_u64).prop_map(|hours| Passes::Some(secs(hours * 3600))),
    ];
    let luck = prop_oneof![4 => 0.0..1.0_f64, 1 => Just(0.0), 1 => Just(1.0 - f64::EPSILON)];
    let of = [0, 1, 2].map(IdentityIndex);
    let mut commands = vec![Command::Retry];
    commands.extend(of.into_iter().flat_map(|index| [Command::Renew(index), Command::ReplaceKey(index)]));
    let command = prop::sample::select(commands);
    let proof = prop_oneof![3 => Just(0), 1 => -7200..7200_i64, 1 => Just(1000 * 86_400)];
    let rare = |p| prop::option::weighted(p, any::<bool>());
    let tpm = prop::option::weighted(0.03, (0..3_usize, any::<bool>()));
    let supplied = prop::sample::select(vec![
        Supplied::Key,
        Supplied::Chain,
        Supplied::Chain,
        Supplied::Token,
        Supplied::Token,
    ]);
    let by_others = (tpm, prop::option::weighted(0.1, (0..3_usize, supplied)));
    let more =
        (prop::option::weighted(0.03, command), by_others, rare(0.03), prop::option::weighted(0.05, proof));
    let restart = prop::sample::select(vec![Restart::OfTheAgent, Restart::OfTheMachine]);
    (passes, reply(), luck, prop::option::weighted(0.04, restart), more).prop_map(
        |(passes, reply, luck, restart, (command, (tpm, supplied), synchronised, proof))| Turn {
            passes,
            reply,
            luck,
            restart,
            command,
            tpm,
            supplied,
            synchronised,
            proof,
        },
    )
}

pub(super) fn reply() -> impl Strategy<Value = Reply> {
    let kind = prop_oneof![
        6 => Just(Kind::Good),
        6 => (failure_kind(), retry_after()).prop_map(|(kind, wait)| Kind::Fails(kind, wait)),
        1 => (1..600_u64).prop_map(Kind::Early),
        1 => Just(Kind::UnknownIssuer),
        1 => Just(Kind::IssuerExpired),
        1 => Just(Kind::NoPath),
        1 => Just(Kind::Refused),
    ];
    let hint = prop_oneof![3 => Just(None), 1 => any::<u64>().prop_map(|s| Some(secs(s))), 1 => Just(Some(secs(60)))];
    let wall_off = prop::option::weighted(0.1, prop_oneof![Just(0), -12 * 3600..12 * 3600_i64]);
    let rare = || prop::bool::weighted(0.15);
    let vouches = prop_oneof![4 => Just(Some(true)), 1 => Just(Some(false)), 1 => Just(None)];
    (wall_off, kind, rare(), rare(), rare(), hint, vouches, rare()).prop_map(
        |(wall_off, kind, changed, cannot_enroll, cannot_renew, refresh_hint, vouches, ends_sooner)| Reply {
            wall_off,
            kind,
            changed,
            cannot_enroll,
            cannot_renew,
            refresh_hint,
            vouches,
            ends_sooner,
        },
    )
}

pub(super) fn failure_kind() -> impl Strategy<Value = FailureKind> {
    prop::sample::select(vec![
        FailureKind::Transient,
        FailureKind::Pending,
        FailureKind::Permanent,
        FailureKind::KeyRotationRefused,
        FailureKind::RefusedForNow,
        FailureKind::NotAuthenticated,
        FailureKind::TokenRefused,
        FailureKind::NoToken,
        FailureKind::Slow,
        FailureKind::NotFound,
        FailureKind::Local,
        FailureKind::Offline,
        FailureKind::PendingKeyLost,
    ])
}

/// No request was made, so that no answer can have asked to wait.
pub(super) fn asks_nobody(kind: FailureKind) -> bool {
    matches!(
        kind,
        FailureKind::Local
            | FailureKind::Offline
            | FailureKind::NoToken
            | FailureKind::OtherAuthority
            | FailureKind::PendingKeyLost
            | FailureKind::CurrentKeyLost
    )
}

pub(super) fn retry_after() -> impl Strategy<Value = Option<Duration>> {
    prop_oneof![
        4 => Just(None),
        1 => Just(Some(Duration::ZERO)),
        2 => (1..10_000_u64).prop_map(|s| Some(secs(s))),
        1 => Just(Some(Duration::MAX)),
    ]
}

/// What is on disk of an identity when a history begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beginning {
    pub(super) issuance: Issuance,
    pub(super) rotate: Rotation,
    pub(super) has_token: bool,
    pub(super) svid: bool,
    pub(super) pending_key: bool,
    pub(super) issued: bool,
}

/// The first identity is the device's: others may need its SVID.
pub(super) fn beginning() -> impl Strategy<Value = [Beginning; 3]> {
    let one = |ways: Vec<Issuance>| {
        let rotate = prop_oneof![
            3 => Just(Rotation::Always),
            2 => Just(Rotation::Never),
            1 => (0..3_u32).prop_map(Rotation::AfterRenewals),
            1 => (0..100_000_u64).prop_map(|age| Rotation::AfterAge(secs(age))),
        ];
        (prop::sample::select(ways), rotate, any::<(bool, bool, bool, bool)>()).prop_map(
            |(issuance, rotate, (has_token, svid, pending_key, issued))| Beginning {
                issuance,
                rotate,
                has_token,
                svid,
                pending_key,
                issued,
            },
        )
    };
    let (with_the_first, by_operator) = (Issuance::With(IdentityIndex(0)), Issuance::ByOperator);
    let with_token = Issuance::WithToken;
    [
        one(vec![Issuance::Requested]),
        one(vec![Issuance::Requested, with_the_first, with_token, with_token]),
        one(vec![by_operator, by_operator, with_the_first, with_token]),
    ]
}

#[derive(Clone, Debug)]
pub(super) struct Failing {
    pub(super) what: &'static str,
    pub(super) kind: FailureKind,
    pub(super) at_once: bool,
}

pub(super) fn failing() -> impl Strategy<Value = Failing> {
    let what =
        prop::sample::select(vec!["discovery", "bundle", "key", "request", "issuer", "answer", "anchor"]);
    (what, failure_kind(), any::<bool>()).prop_map(|(what, kind, at_once)| Failing {
        what,
        kind,
        at_once: at_once && !asks_nobody(kind),
    })
}
