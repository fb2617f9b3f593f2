//! The memory of a process, as a thief of it would see it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

const CHUNK: usize = 1 << 20;

/// The mappings of a process in which these bytes are. Needs root: the memory of the agent is
/// closed to others.
pub(crate) fn mappings_with(pid: u32, secret: &[u8]) -> Vec<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("a process");
    let memory = File::open(format!("/proc/{pid}/mem")).expect("the memory of the process");
    let holds = |mapping: &&str| {
        let (range, rest) = mapping.split_once(' ').expect("a range");
        let (from, to) = range.split_once('-').expect("two addresses");
        let [from, to] = [from, to].map(|hex| usize::from_str_radix(hex, 16).expect("an address"));
        let has_content = rest.starts_with('r') && !rest.contains("[v");
        let mut buffer = vec![0; CHUNK + secret.len()];
        has_content
            && (from..to).step_by(CHUNK).any(|at| {
                let length = buffer.len().min(to - at);
                let read = memory.read_at(&mut buffer[..length], at as u64).unwrap_or(0);
                buffer[..read].windows(secret.len()).any(|window| window == secret)
            })
    };
    maps.lines().filter(holds).map(str::to_owned).collect()
}
