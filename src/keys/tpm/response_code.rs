//! What the response codes of the TSS and of the TPM mean for the agent.

use tss_esapi::Error;
use tss_esapi::constants::response_code::Tss2ResponseCode;

use super::error::{NvLock, ParentFlaw, Subject, TpmError, UnreachableCause};
use super::tcti::Tcti;
use crate::hint::Reason;
use miaf_spiffe::text::Excerpt;

/// A failed operation: what went wrong, and in which step.
#[derive(Debug)]
pub(super) enum Failure {
    /// The TSS or the TPM reports an error.
    Tss(Step, Error),
    /// The TPM refuses a password, now or the time before.
    Password(Step, u32),
    /// An NV index is there and cannot be used.
    Nv(u32, NvProblem),
    /// A persistent parent is there and cannot be used.
    Parent(u32, ParentProblem),
    /// The owner password cannot be read or used.
    OwnerAuth(Reason),
    /// The owner's primary may not be derived, nor can the storage root key at its handle be used
    /// instead.
    NoParent { primary: Box<Failure>, srk: (u32, Box<Failure>) },
    /// The TPM did something other than it was told to.
    Deviant(String),
}

/// Why an NV index cannot be used.
#[derive(Debug)]
pub(super) enum NvProblem {
    Locked(NvLock),
    Unwritten,
    Content(String),
}

/// Why a persistent parent cannot be used.
#[derive(Debug)]
pub(super) enum ParentProblem {
    /// Another key has been put in its place.
    Replaced,
    /// It is not one for the agent's keys.
    Unfit(ParentFlaw),
    /// The hierarchy that it lies in is disabled, so that there seems to be none (with this
    /// response code).
    Disabled(u32),
}

/// A step of an operation. The same code means different things in different steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Open,
    Primary,
    /// With the owner password that is configured.
    PrimaryByPassword,
    /// Of a key that is there.
    Parent(u32),
    /// Of a key that is to be created.
    NewParent(u32),
    Handle(u32),
    Nv(u32),
    Create,
    Load,
    Sign,
    Release,
    Describe,
}

pub(super) trait During<T> {
    /// Adds the step in which an error came up.
    fn during(self, step: Step) -> Result<T, Failure>;
}

impl<T> During<T> for Result<T, Error> {
    fn during(self, step: Step) -> Result<T, Failure> {
        self.map_err(|error| Failure::Tss(step, error))
    }
}

/// `TPM_RC_AUTH_FAIL`, as far as it is the same wherever it comes up.
const AUTH_FAIL: u32 = 0x0e;

impl Failure {
    /// Whether the operation may well succeed at once on a fresh connection.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Tss(Step::Open, _) => false,
            Self::Tss(step, error) => {
                matches!(meaning(*step, code(error)), Meaning::Connection | Meaning::Reset)
            }
            _ => false,
        }
    }

    /// Whether the TPM may accept another request where it has refused this one.
    pub(super) fn is_about_the_request(&self) -> bool {
        matches!(self, Self::Tss(step, error) if meaning(*step, code(error)) == Meaning::Other)
    }

    /// Whether the owner's primary may not be derived, with the TPM and the configuration as they
    /// are.
    pub(super) fn forbids_the_primary(&self) -> bool {
        match self {
            Self::Tss(step, error) => matches!(
                meaning(*step, code(error)),
                Meaning::OwnerPassword | Meaning::OwnerAuthRefused | Meaning::HierarchyDisabled
            ),
            Self::OwnerAuth(_) => true,
            _ => false,
        }
    }

    /// The response code of a persistent key that is not there, or seems not to be.
    pub(super) fn of_a_missing_parent(&self) -> Option<u32> {
        match self {
            Self::Tss(step, error) => {
                let code = code(error);
                matches!(meaning(*step, code), Meaning::ParentMissing(..)).then_some(code)
            }
            _ => None,
        }
    }

    /// Whether the TPM refuses the password of a parent.
    pub(super) fn is_about_the_parent(&self) -> bool {
        matches!(self, Self::Tss(step, error) if matches!(meaning(*step, code(error)), Meaning::ParentPassword(_)))
    }

    /// This failure, and that of the storage root key at `handle` which was tried instead.
    pub(super) fn with_srk(self, handle: u32, srk: Self) -> Self {
        match &srk {
            // Whether it can be used is not known yet.
            Self::Tss(step, error) => match meaning(*step, code(error)) {
                Meaning::Connection | Meaning::Reset | Meaning::Busy | Meaning::SlotsFull => srk,
                _ => Self::NoParent { primary: Box::new(self), srk: (handle, Box::new(srk)) },
            },
            _ => Self::NoParent { primary: Box::new(self), srk: (handle, Box::new(srk)) },
        }
    }

    /// Why the storage root key cannot take the primary's place, in a few words.
    fn as_srk(&self) -> String {
        match self {
            Self::Parent(_, ParentProblem::Unfit(why)) => why.to_string(),
            Self::Parent(_, ParentProblem::Disabled(_)) => "it is disabled, too".into(),
            Self::Tss(step, error) => match meaning(*step, code(error)) {
                Meaning::ParentMissing(..) => "there is none".into(),
                Meaning::ParentPassword(_) => "it has a password".into(),
                Meaning::NotThisTpm => "the key was not created under it".into(),
                _ => format!("code {:#x} while {}", code(error), step.doing()),
            },
            Self::Password(..) => "it has a password".into(),
            Self::Deviant(why) => why.clone(),
            Self::OwnerAuth(why) => why.to_string(),
            Self::Parent(..) | Self::Nv(..) | Self::NoParent { .. } => "it is another one".into(),
        }
    }

    /// Whether the TPM refuses the password of an object.
    pub(super) fn is_about_a_password(&self) -> bool {
        let (step, code) = match self {
            Self::Tss(step, error) => (*step, code(error)),
            Self::Password(..) => return true,
            _ => return false,
        };
        matches!(
            meaning(step, code),
            Meaning::KeyPassword
                | Meaning::ParentPassword(_)
                | Meaning::NvPassword(_)
                | Meaning::OwnerPassword
                | Meaning::OwnerAuthRefused
        )
    }

    /// The step and code of a wrong password that the TPM counts towards lock-out. It has a code of
    /// its own for what it guards against guessing (`TPM_RC_AUTH_FAIL`; TPM 2.0 specification, part
    /// 2), and another for what it does not.
    pub(super) fn was_counted(&self) -> Option<(Step, u32)> {
        match self {
            Self::Tss(step, error) => {
                let code = code(error);
                (self.is_about_a_password() && code & 0x3f == AUTH_FAIL).then_some((*step, code))
            }
            Self::Password(step, code) => Some((*step, *code)),
            _ => None,
        }
    }

    /// The error for callers of the TPM behind `tcti`.
    pub(super) fn into_error(self, tcti: &Tcti) -> TpmError {
        let at = tcti.to_string();
        let (failure, srk) = match self {
            Self::NoParent { primary, srk: (handle, srk) } => (*primary, Some((handle, srk.as_srk()))),
            failure => (failure, None),
        };
        let instead = srk
            .map(|(handle, why)| format!("; nor can the storage root key at {handle:#010x} be used: {why}"));
        let instead = instead.unwrap_or_default();
        let (step, code, meaning_of_code) = match failure {
            Self::Tss(step, error) => (step, code(&error), Excerpt::of(error, MAX_MEANING).into_string()),
            Self::Password(step, code) => (step, code, String::new()),
            Self::Nv(index, NvProblem::Locked(why)) => return TpmError::NvLocked { tcti: at, index, why },
            Self::Nv(index, NvProblem::Unwritten) => return TpmError::NvUnwritten { tcti: at, index },
            Self::Nv(index, NvProblem::Content(why)) => return TpmError::NvContent { tcti: at, index, why },
            Self::Deviant(why) => return TpmError::Deviant { tcti: at, why },
            Self::Parent(handle, ParentProblem::Replaced) => {
                return TpmError::ParentReplaced { tcti: at, handle };
            }
            Self::Parent(_, ParentProblem::Disabled(code)) => {
                return TpmError::HierarchyDisabled { tcti: at, code, instead };
            }
            Self::Parent(handle, ParentProblem::Unfit(why)) => {
                return TpmError::ParentUnfit { tcti: at, handle, why };
            }
            Self::OwnerAuth(why) => return TpmError::OwnerAuthUnreadable { why, instead },
            // There is never one in another.
            Self::NoParent { primary, .. } => return primary.into_error(tcti),
        };
        let doing = step.doing();
        match meaning(step, code) {
            Meaning::Connection => match tcti.diagnose() {
                Some(cause) => TpmError::Unreachable { tcti: at, cause },
                None if step == Step::Open => {
                    let cause = UnreachableCause::NoTpm { code, library: tcti.library() };
                    TpmError::Unreachable { tcti: at, cause }
                }
                None => TpmError::Gone { tcti: at, doing, code },
            },
            Meaning::Reset => TpmError::Gone { tcti: at, doing, code },
            Meaning::Busy => TpmError::Busy { tcti: at, why: format!("code {code:#x}: {meaning_of_code}") },
            Meaning::SlotsFull => TpmError::SlotsFull { tcti: at, code },
            Meaning::Lockout => TpmError::Lockout { tcti: at },
            Meaning::OwnerPassword => TpmError::OwnerPassword { tcti: at, code, instead },
            Meaning::OwnerAuthRefused => TpmError::OwnerAuthRefused { tcti: at, code, instead },
            Meaning::HierarchyDisabled => TpmError::HierarchyDisabled { tcti: at, code, instead },
            Meaning::ParentMissing(handle, key) => TpmError::ParentMissing { tcti: at, handle, key },
            Meaning::NotThisTpm => TpmError::NotThisTpm { tcti: at, code, key: Subject::AgentKey },
            Meaning::ParentPassword(key) => TpmError::ParentPassword { tcti: at, code, key },
            Meaning::HandleMissing(handle) => TpmError::HandleMissing { tcti: at, handle },
            Meaning::KeyPassword => TpmError::KeyPassword { tcti: at, code },
            Meaning::NvMissing(index) => TpmError::NvMissing { tcti: at, index },
            Meaning::NvPassword(index) => TpmError::NvLocked { tcti: at, index, why: NvLock::Password },
            Meaning::NvUnwritten(index) => TpmError::NvUnwritten { tcti: at, index },
            Meaning::Other => TpmError::Refused { tcti: at, doing, code, meaning: meaning_of_code },
        }
    }
}

/// Characters of what the TSS library says of a response code.
const MAX_MEANING: usize = 256;

impl Step {
    fn doing(self) -> &'static str {
        match self {
            Self::Open => "opening the connection",
            Self::Primary | Self::PrimaryByPassword => "deriving the storage key",
            Self::Parent(_) | Self::NewParent(_) => "looking up the parent key",
            Self::Handle(_) => "looking up the key",
            Self::Nv(_) => "reading an NV index",
            Self::Create => "creating a key",
            Self::Load => "loading the key",
            Self::Sign => "signing",
            Self::Release => "releasing the key",
            Self::Describe => "reading its properties",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Meaning {
    Connection,
    Reset,
    Busy,
    SlotsFull,
    Lockout,
    OwnerPassword,
    OwnerAuthRefused,
    HierarchyDisabled,
    ParentMissing(u32, Subject),
    ParentPassword(Subject),
    HandleMissing(u32),
    NotThisTpm,
    KeyPassword,
    NvMissing(u32),
    NvPassword(u32),
    NvUnwritten(u32),
    Other,
}

/// Codes are `00LLCCCC`: the layer that speaks, and what it says. Part 2 of the TPM 2.0
/// specification, clause 6.6, has the TPM's own; those of "format one" (`0x080` set) also carry the
/// number of the parameter, handle or session.
fn meaning(step: Step, code: u32) -> Meaning {
    match (code >> 16) & 0xff {
        // The TPM itself, and a resource manager on its behalf.
        0 | 11 | 12 => tpm_meaning(step, code & 0xffff),
        // ESYS, SYS and marshalling have lost track of the conversation; TCTI has lost the TPM.
        7..=10 => Meaning::Connection,
        _ => Meaning::Other,
    }
}

fn tpm_meaning(step: Step, code: u32) -> Meaning {
    match code {
        // Not initialised since power-on; a handle that it returned before does not exist any more.
        0x100 | 0x910..=0x916 | 0x918..=0x91e => Meaning::Reset,
        // Yielded, cancelled, testing itself, sparing its memory, not ready, memory not available.
        0x908..=0x90a | 0x920 | 0x922 | 0x923 => Meaning::Busy,
        0x902..=0x906 => Meaning::SlotsFull,
        0x921 => Meaning::Lockout,
        _ if code & 0x80 != 0 => format_one_meaning(step, code),
        0x14a => match step {
            Step::Nv(index) => Meaning::NvUnwritten(index),
            _ => Meaning::Other,
        },
        // Decrypted, the private half made no sense.
        0x155 if step == Step::Load => Meaning::NotThisTpm,
        _ => Meaning::Other,
    }
}

fn format_one_meaning(step: Step, code: u32) -> Meaning {
    let is_parameter = code & 0x40 != 0;
    let wrong_password = matches!(code & 0x3f, 0x0e | 0x22);
    let no_such_handle = code & 0x3f == 0x0b;
    let hierarchy = code & 0x3f == 0x05;
    match step {
        Step::Primary if wrong_password => Meaning::OwnerPassword,
        Step::PrimaryByPassword if wrong_password => Meaning::OwnerAuthRefused,
        Step::Primary | Step::PrimaryByPassword if hierarchy => Meaning::HierarchyDisabled,
        Step::Create if wrong_password => Meaning::ParentPassword(Subject::NewKey),
        Step::Parent(handle) if no_such_handle => Meaning::ParentMissing(handle, Subject::AgentKey),
        Step::NewParent(handle) if no_such_handle => Meaning::ParentMissing(handle, Subject::NewKey),
        Step::Handle(handle) if no_such_handle => Meaning::HandleMissing(handle),
        Step::Nv(index) if no_such_handle => Meaning::NvMissing(index),
        // It was there a moment ago: power was cut in between.
        Step::Release if no_such_handle => Meaning::Reset,
        Step::Nv(index) if wrong_password => Meaning::NvPassword(index),
        Step::Load if is_parameter => Meaning::NotThisTpm,
        Step::Load if wrong_password => Meaning::ParentPassword(Subject::AgentKey),
        Step::Sign if wrong_password => Meaning::KeyPassword,
        _ => Meaning::Other,
    }
}

/// The number behind an error; 0 for those of the wrapper itself. The number is private to
/// tss-esapi, which prints it.
fn code(error: &Error) -> u32 {
    let printed = match error {
        Error::Tss2Error(Tss2ResponseCode::FormatZero(code)) => code.to_string(),
        Error::Tss2Error(Tss2ResponseCode::FormatOne(code)) => code.to_string(),
        Error::Tss2Error(Tss2ResponseCode::Success) | Error::WrapperError(_) => return 0,
    };
    printed.rsplit_once("0x").and_then(|(_, hex)| u32::from_str_radix(hex, 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_codes_seen_in_the_field_have_their_meaning() {
        for (step, code, expected) in [
            (Step::Load, 0x1df, Meaning::NotThisTpm),
            (Step::Load, 0x2d5, Meaning::NotThisTpm),
            (Step::Load, 0x155, Meaning::NotThisTpm),
            (Step::Create, 0x1df, Meaning::Other),
            (Step::Parent(0x8100_0001), 0x18b, Meaning::ParentMissing(0x8100_0001, Subject::AgentKey)),
            (Step::NewParent(0x8100_0001), 0x18b, Meaning::ParentMissing(0x8100_0001, Subject::NewKey)),
            (Step::Load, 0x18b, Meaning::Other),
            (Step::Primary, 0x9a2, Meaning::OwnerPassword),
            (Step::Primary, 0x98e, Meaning::OwnerPassword),
            (Step::PrimaryByPassword, 0x9a2, Meaning::OwnerAuthRefused),
            (Step::Primary, 0x185, Meaning::HierarchyDisabled),
            (Step::PrimaryByPassword, 0x185, Meaning::HierarchyDisabled),
            (Step::Create, 0x98e, Meaning::ParentPassword(Subject::NewKey)),
            (Step::Create, 0x9a2, Meaning::ParentPassword(Subject::NewKey)),
            (Step::Sign, 0x98e, Meaning::KeyPassword),
            (Step::Sign, 0x9a2, Meaning::KeyPassword),
            (Step::Load, 0x98e, Meaning::ParentPassword(Subject::AgentKey)),
            (Step::Handle(0x8102_0000), 0x18b, Meaning::HandleMissing(0x8102_0000)),
            (Step::Nv(0x01c9_0000), 0x18b, Meaning::NvMissing(0x01c9_0000)),
            (Step::Nv(0x01c9_0000), 0x98e, Meaning::NvPassword(0x01c9_0000)),
            (Step::Nv(0x01c9_0000), 0x9a2, Meaning::NvPassword(0x01c9_0000)),
            (Step::Nv(0x01c9_0000), 0x14a, Meaning::NvUnwritten(0x01c9_0000)),
            (Step::Primary, 0x902, Meaning::SlotsFull),
            (Step::Load, 0xc0902, Meaning::SlotsFull),
            (Step::Sign, 0x910, Meaning::Reset),
            (Step::Release, 0x1cb, Meaning::Reset),
            (Step::Primary, 0x100, Meaning::Reset),
            (Step::Release, 0x70018, Meaning::Connection),
            (Step::Open, 0xa000a, Meaning::Connection),
            (Step::Load, 0x921, Meaning::Lockout),
            (Step::Sign, 0x922, Meaning::Busy),
            (Step::Primary, 0x101, Meaning::Other),
            (Step::Sign, 0, Meaning::Other),
        ] {
            assert_eq!(meaning(step, code), expected, "{step:?} {code:#x}");
        }
    }
}
