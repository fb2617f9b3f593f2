//! Processor time and memory of the agent, as the kernel counts them (proc_pid_stat(5),
//! proc_pid_status(5)).

use std::fs;
use std::time::Duration;

use crate::support::agent::Device;

/// Processor time of the agent, of all threads.
pub(crate) fn processor_time(device: &Device) -> Duration {
    time_in(&format!("/proc/{}/stat", device.pid()))
}

/// Processor time of the thread that runs the lifecycle.
pub(crate) fn processor_time_of_loop(device: &Device) -> Duration {
    let pid = device.pid();
    time_in(&format!("/proc/{pid}/task/{pid}/stat"))
}

/// `utime` and `stime`.
fn time_in(file: &str) -> Duration {
    let stat = fs::read_to_string(file).unwrap();
    let after_name = stat.rsplit_once(") ").unwrap().1;
    let ticks: u64 = after_name.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10) // USER_HZ is 100 on every architecture that the agent is built for
}

/// Anonymous memory now, in KiB.
pub(crate) fn memory(device: &Device) -> u64 {
    kib(device, "RssAnon:")
}

/// The most memory that there ever was, with files, in KiB.
pub(crate) fn peak_memory(device: &Device) -> u64 {
    kib(device, "VmHWM:")
}

fn kib(device: &Device, what: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", device.pid())).unwrap();
    let value = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    value.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Names of the agent's threads.
pub(crate) fn threads(device: &Device) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", device.pid())).unwrap();
    tasks
        .filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok())
        .map(|name| name.trim_end().to_owned())
        .collect()
}
