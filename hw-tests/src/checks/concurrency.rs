//! Others use the TPM too: tpm2-tools in a loop, and the agent at the same time.

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use miaf_agent::keys::KeyError;
use miaf_agent::keys::tpm::TpmError;

use super::{Outcome, Verdict, key};
use crate::bench::Bench;
use crate::connection::{self, AS_THE_AGENT_DOES};
use crate::persistent::{HANDLE, Stored};
use crate::timings::Timing;
use crate::{Failure, interrupt};

/// Far longer than the slowest TPM takes.
const DEADLINE: Duration = Duration::from_secs(600);

pub(super) fn tools_at_the_same_time(bench: &Bench) -> Outcome {
    if bench.has_resource_manager {
        return side_by_side(bench, "create, load, sign, verify, flush", "objects");
    }
    // Without a resource manager the tools would leave their objects in the few slots, or take the
    // agent's out of them.
    let _key = Stored::key(&bench.tcti, connection::p256_key(AS_THE_AGENT_DOES)?)?;
    side_by_side(bench, "sign and verify at a handle, as there is no resource manager", "handle")
}

fn side_by_side(bench: &Bench, what_the_tools_do: &str, way: &str) -> Outcome {
    let made = bench.agent.create_key()?;
    // Started before the agent talks to the TPM again: the TSS would have it inherit the
    // connection.
    let rounds = (bench.rounds / 10).clamp(1, 10);
    let mut tools = Tools::start(bench, way, rounds)?;
    let begun = Instant::now();
    let mut signatures = Timing::new("");
    let mut busy = 0;
    while tools.are_at_work()? {
        match signatures.time(|| key::sign_and_verify(&made, key::MESSAGE)) {
            Ok(_) => {}
            Err(error) if matches!(error.downcast_ref(), Some(KeyError::Tpm(TpmError::Busy { .. }))) => {
                busy += 1
            }
            Err(error) => return Err(format!("the agent concurrent with tpm2-tools: {error}").into()),
        }
        if begun.elapsed() > DEADLINE {
            return Err(format!("timed out after {DEADLINE:?} waiting for tpm2-tools to end").into());
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    if busy > 0 || signatures.rounds() == 0 {
        return Err(format!("the TPM was busy {busy} of {} times", signatures.rounds()).into());
    }
    Ok(Verdict::Passed(format!(
        "{rounds} rounds of tpm2-tools ({what_the_tools_do}) in {seconds:.1} s; in the meantime {} signatures of the agent, \
         p50 {:.2} ms, max {:.2} ms; never busy",
        signatures.rounds(),
        signatures.percentile(50),
        signatures.percentile(100),
    )))
}

/// The tools at work in a process of their own, ended when dropped.
struct Tools {
    process: Child,
    stop: PathBuf,
}

impl Tools {
    fn start(bench: &Bench, way: &str, rounds: u32) -> Result<Self, Failure> {
        bench
            .command("bash")
            .args([
                "-c",
                include_str!("concurrency.sh"),
                "concurrency",
                way,
                &rounds.to_string(),
                &format!("{HANDLE:#010x}"),
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map(|process| Self { process, stop: bench.directory().join("stop") })
            .map_err(|error| format!("cannot start bash: {error}").into())
    }

    /// Fails if they have.
    fn are_at_work(&mut self) -> Result<bool, Failure> {
        interrupt::check()?;
        let Some(status) = self.process.try_wait()? else { return Ok(true) };
        if status.success() {
            return Ok(false);
        }
        let said = self.process.stderr.take().map(std::io::read_to_string).transpose()?.unwrap_or_default();
        Err(format!("tpm2-tools, concurrent with the agent ({status}): {}", said.trim()).into())
    }
}

impl Drop for Tools {
    fn drop(&mut self) {
        // Not by force: the tool at work would go on without its shell, and be found in the TPM.
        if std::fs::write(&self.stop, "").is_err() {
            let _ = self.process.kill();
        }
        let _ = self.process.wait();
    }
}
