//! Timers that wake when they are due or when the wall clock is set, and never otherwise
//! (timerfd_create(2)).

use std::future::pending;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::time::{TimeSpec, time_t};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::unistd;
use tokio::io::unix::AsyncFd;

/// Limit of a wait: a longer one would not fit into every `time_t`.
const LONGEST_WAIT: Duration = Duration::from_secs(i32::MAX as u64);

/// A timer for the event loop. Until it is due, nothing wakes the processor: there is no polling.
#[derive(Debug)]
pub(crate) struct Alarm {
    /// On `CLOCK_BOOTTIME`: time in suspend counts, and a wall clock that is set does not.
    due: Timer,
    /// Never due. On `CLOCK_REALTIME`, whose timers can be cancelled by setting the clock.
    set: Timer,
}

/// Why a sleep has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// It is time.
    Due,
    /// The wall clock was set, during this sleep or since the one before it; or the machine was
    /// suspended.
    ClockSet,
}

impl Alarm {
    /// Creates an alarm, which notices from now on that the wall clock is set. To be called within
    /// a tokio runtime.
    ///
    /// # Errors
    /// The kernel has no timers for this process.
    pub(crate) fn new() -> io::Result<Self> {
        let alarm =
            Self { due: Timer::on(ClockId::CLOCK_BOOTTIME)?, set: Timer::on(ClockId::CLOCK_REALTIME)? };
        alarm.set.never()?;
        Ok(alarm)
    }

    /// Waits for so long (at most 68 years), or until the wall clock is set. May be dropped at any
    /// time; the next sleep is a new one, and knows of a clock that was set in between.
    pub(crate) async fn sleep(&mut self, wait: Duration) -> Woken {
        if self.due.once(wait).is_err() {
            return pending().await; // for impossible arguments only
        }
        tokio::select! {
            biased; // what depends on the wall clock may have changed
            () = self.set.cancelled() => Woken::ClockSet,
            () = self.due.expired() => Woken::Due,
        }
    }
}

#[derive(Debug)]
struct Timer(AsyncFd<Descriptor>);

#[derive(Debug)]
struct Descriptor(TimerFd);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Timer {
    fn on(clock: ClockId) -> io::Result<Self> {
        let timer = TimerFd::new(clock, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        // Its successor is unsafe for the sake of types that close or lend their descriptor: this
        // one does not.
        #[allow(deprecated)]
        AsyncFd::new(Descriptor(timer)).map(Self)
    }

    fn once(&self, wait: Duration) -> Result<(), Errno> {
        // Zero would disarm it.
        let wait = TimeSpec::from_duration(wait.clamp(Duration::from_nanos(1), LONGEST_WAIT));
        self.0.get_ref().0.set(Expiration::OneShot(wait), TimerSetTimeFlags::empty())
    }

    /// Only to be cancelled.
    fn never(&self) -> Result<(), Errno> {
        let never = Expiration::OneShot(TimeSpec::new(time_t::MAX, 0));
        let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        match self.0.get_ref().0.set(never, flags) {
            Err(Errno::ECANCELED) => Ok(()), // the clock was set just before; the timer is armed
            other => other,
        }
    }

    async fn expired(&self) {
        self.outcome(|outcome| outcome.is_ok()).await;
    }

    async fn cancelled(&self) {
        self.outcome(|outcome| outcome == Err(Errno::ECANCELED)).await;
        let _ = self.never(); // it was possible before
    }

    /// Waits until reading the timer gives this outcome.
    async fn outcome(&self, wanted: impl Fn(nix::Result<usize>) -> bool) {
        // An error comes when the runtime is shut down, and then there is no waiter.
        while let Ok(mut readable) = self.0.readable().await {
            if wanted(unistd::read(&self.0.get_ref().0, &mut [0; size_of::<u64>()])) {
                return;
            }
            readable.clear_ready();
        }
        pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;
    use tokio::time::timeout;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(3600);

    /// The time it took. A loaded machine may take longer than it should, never less.
    async fn sleep(alarm: &mut Alarm, wait: Duration) -> Duration {
        let begin = Instant::now();
        assert_eq!(timeout(Duration::from_secs(20), alarm.sleep(wait)).await, Ok(Woken::Due));
        begin.elapsed()
    }

    #[tokio::test]
    async fn alarm_wakes_when_due_and_not_before() {
        let mut alarm = Alarm::new().unwrap();
        for wait in [SHORT, SHORT * 2, Duration::ZERO, Duration::from_nanos(1), SHORT] {
            assert!(sleep(&mut alarm, wait).await >= wait);
        }
        // The one before it has no effect.
        assert!(timeout(SHORT, alarm.sleep(LONG)).await.is_err());
    }

    #[tokio::test]
    async fn dropped_sleep_leaves_nothing_behind() {
        let mut alarm = Alarm::new().unwrap();
        // Before it is due: the next one is neither shortened by it nor as long.
        assert!(timeout(SHORT, alarm.sleep(SHORT * 4)).await.is_err());
        assert!(sleep(&mut alarm, SHORT * 8).await >= SHORT * 8);
        assert!(timeout(SHORT, alarm.sleep(LONG)).await.is_err());
        assert!(sleep(&mut alarm, SHORT).await >= SHORT);
        // And when it was due, but was not polled.
        tokio::select! {
            biased;
            woken = alarm.sleep(Duration::from_millis(20)) => panic!("{woken:?}"),
            () = std::future::ready(()) => {}
        }
        std::thread::sleep(SHORT);
        assert!(sleep(&mut alarm, SHORT).await >= SHORT);
    }

    #[tokio::test]
    async fn endless_wait_is_no_error() {
        let mut alarm = Alarm::new().unwrap();
        for wait in [LONGEST_WAIT, Duration::MAX] {
            assert!(timeout(SHORT, alarm.sleep(wait)).await.is_err());
        }
    }

    /// The clock of a machine that others use is not set for a test: here the kernel is asked what
    /// it would do.
    #[tokio::test]
    async fn clock_timer_is_cancelled_by_setting_and_never_expires() {
        let mut alarm = Alarm::new().unwrap();
        for _ in 0..2 {
            let timer = alarm.set.0.get_ref().as_raw_fd();
            let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{timer}")).unwrap();
            let shown = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            assert_eq!(shown("clockid:"), Some("0"), "{info}"); // CLOCK_REALTIME
            assert_eq!(shown("settime flags:"), Some("03"), "{info}"); // absolute, cancelled on set
            let left: i64 = shown("it_value: (").unwrap().split(',').next().unwrap().parse().unwrap();
            assert!(left > 100 * 365 * 86_400, "{info}");
            assert!(timeout(SHORT, alarm.sleep(LONG)).await.is_err());
            alarm.set.never().unwrap(); // as it is after the clock was set
        }
    }
}
