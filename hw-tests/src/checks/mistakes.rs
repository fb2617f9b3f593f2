//! What goes wrong in the field is told apart, with what to do about it.

use miaf_agent::keys::factory_key::{self, Source};
use miaf_agent::keys::tpm::TpmError;
use miaf_agent::keys::tss2::Tss2Key;
use miaf_agent::keys::{Key, KeyError, KeyFileError};

use super::{Outcome, Verdict, ensure, key};
use crate::bench::Bench;
use crate::persistent::{HANDLE, INDEX};

/// A key of a software TPM that is no more.
const KEY_OF_ANOTHER_TPM: &str = include_str!("../../another-tpm.pem");

pub(super) fn key_of_another_tpm(bench: &Bench) -> Outcome {
    match bench.agent.key_from_pem(KEY_OF_ANOTHER_TPM)?.sign(key::MESSAGE) {
        Err(KeyError::Tpm(TpmError::NotThisTpm { code, .. })) => {
            Ok(Verdict::Passed(format!("NotThisTpm, code {code:#x}")))
        }
        other => Err(format!("instead: {other:?}").into()),
    }
}

pub(super) fn damaged_key(bench: &Bench) -> Outcome {
    let pem = bench.agent.create_key()?.to_pem()?;
    let good = Tss2Key::from_pem(&pem)?;

    let cut = pem.get(..pem.len() / 2).unwrap_or_default();
    let read = bench.agent.key_from_pem(cut);
    ensure(matches!(read, Err(KeyError::File(KeyFileError::Malformed { .. }))), || {
        format!("half a PEM: {read:?}")
    })?;

    let flipped = Tss2Key { private: flip_a_bit(&good.private), ..good };
    let signed = bench.agent.key_from_pem(&flipped.to_pem()?)?.sign(key::MESSAGE);
    let Err(KeyError::Tpm(TpmError::NotThisTpm { code, .. })) = signed else {
        return Err(format!("one bit of the private half: {signed:?}").into());
    };
    Ok(Verdict::Passed(format!(
        "half a PEM: Malformed; one bit of the private half: NotThisTpm, code {code:#x}"
    )))
}

fn flip_a_bit(bytes: &[u8]) -> Vec<u8> {
    let middle = bytes.len() / 2;
    bytes.iter().enumerate().map(|(at, byte)| if at == middle { byte ^ 1 } else { *byte }).collect()
}

pub(super) fn nothing_there(bench: &Bench) -> Outcome {
    let opened = factory_key::open(Source::TpmHandle(HANDLE), None, &bench.agent);
    ensure(matches!(opened, Err(KeyError::Tpm(TpmError::HandleMissing { .. }))), || {
        format!("handle: {opened:?}")
    })?;
    let read = bench.agent.certificates_in_nv(INDEX);
    ensure(matches!(read, Err(KeyError::Tpm(TpmError::NvMissing { .. }))), || format!("NV index: {read:?}"))?;
    Ok(Verdict::Passed("HandleMissing, NvMissing".into()))
}
