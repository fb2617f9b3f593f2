//! How long things take: each step on the TPM, and the whole as the agent does it.

use std::time::Instant;

use miaf_agent::keys::Key;
use tss_esapi::handles::KeyHandle;

use crate::bench::Bench;
use crate::checks::key;
use crate::connection::{self, AS_THE_AGENT_DOES, During};
use crate::persistent::Stored;
use crate::{Failure, interrupt};

/// The times that one kind of step took.
pub(crate) struct Timing {
    pub(crate) step: &'static str,
    milliseconds: Vec<f64>,
}

impl Timing {
    pub(crate) fn new(step: &'static str) -> Self {
        Self { step, milliseconds: Vec::new() }
    }

    /// Does something and notes how long it took.
    pub(crate) fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let done = work();
        self.milliseconds.push(begun.elapsed().as_secs_f64() * 1000.0);
        self.milliseconds.sort_by(f64::total_cmp);
        done
    }

    pub(crate) fn rounds(&self) -> usize {
        self.milliseconds.len()
    }

    /// The time that `percent` of the rounds did not exceed.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.milliseconds.len() * percent).div_ceil(100);
        self.milliseconds.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }
}

/// Each write to NV wears the TPM.
const EVICTIONS: u32 = 3;

/// Measures everything.
pub(crate) fn measure(bench: &Bench) -> Result<Vec<Timing>, Failure> {
    let mut timings = steps(bench)?;
    timings.extend(evictions(bench)?);
    timings.extend(agent(bench)?);
    Ok(timings)
}

fn steps(bench: &Bench) -> Result<Vec<Timing>, Failure> {
    let [mut open, mut primary, mut create, mut load, mut sign, mut flush] = [
        Timing::new("open a connection"),
        Timing::new("CreatePrimary, the storage key"),
        Timing::new("Create, P-256"),
        Timing::new("Load"),
        Timing::new("Sign, P-256"),
        Timing::new("FlushContext"),
    ];
    for _ in 0..bench.rounds.div_ceil(4) {
        interrupt::check()?;
        let mut context = open.time(|| connection::open(&bench.tcti))?;
        let parent = primary.time(|| connection::parent(&mut context))?;
        let template = connection::p256_key(AS_THE_AGENT_DOES)?;
        let made =
            create.time(|| context.create(parent, template, None, None, None, None)).during("Create")?;
        let key: KeyHandle =
            load.time(|| context.load(parent, made.out_private, made.out_public)).during("Load")?;
        for _ in 0..4 {
            sign.time(|| connection::sign(&mut context, key)).during("Sign")?;
        }
        flush.time(|| context.flush_context(key.into())).during("FlushContext")?;
    }
    Ok(vec![open, primary, create, load, sign, flush])
}

fn agent(bench: &Bench) -> Result<Vec<Timing>, Failure> {
    let mut create = Timing::new("the agent makes a key");
    let mut sign = Timing::new("the agent signs");
    for _ in 0..bench.rounds.div_ceil(4) {
        interrupt::check()?;
        let made = create.time(|| bench.agent.create_key())?;
        for _ in 0..4 {
            sign.time(|| made.sign(key::MESSAGE))?;
        }
    }
    Ok(vec![create, sign])
}

fn evictions(bench: &Bench) -> Result<Vec<Timing>, Failure> {
    let mut keep = Timing::new("EvictControl, to keep a key");
    for _ in 0..EVICTIONS {
        interrupt::check()?;
        let mut context = connection::open(&bench.tcti)?;
        let key = connection::parent(&mut context)?;
        let _persistent = keep.time(|| Stored::loaded_key(&bench.tcti, &mut context, key))?;
    }
    Ok(vec![keep])
}
