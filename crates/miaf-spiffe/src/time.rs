//! Points in time as plain values. Nothing here reads a clock: the caller does.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A moment of the wall clock, in milliseconds since 1970-01-01T00:00:00Z. Certificates speak in
/// it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    /// Creates it from milliseconds since the epoch.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Creates it from whole seconds since the epoch, saturating at the ends of the range.
    pub const fn from_secs(secs: i64) -> Self {
        Self(secs.saturating_mul(1000))
    }

    /// Milliseconds since the epoch.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// This moment and `d` more.
    #[must_use]
    pub fn after(self, d: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(d.as_millis()).unwrap_or(i64::MAX)))
    }

    /// The duration until `later`; zero when it has passed.
    pub fn until(self, later: Self) -> Duration {
        Duration::from_millis(u64::try_from(later.0.saturating_sub(self.0)).unwrap_or(0))
    }

    /// Whole seconds since the epoch, zero before it: the form that certificate validation takes.
    pub(crate) fn unix_duration(self) -> Duration {
        Duration::from_millis(u64::try_from(self.0).unwrap_or(0))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(t: SystemTime) -> Self {
        match t.duration_since(UNIX_EPOCH) {
            Ok(d) => Self(i64::try_from(d.as_millis()).unwrap_or(i64::MAX)),
            Err(e) => Self(i64::try_from(e.duration().as_millis()).map_or(i64::MIN, |ms| -ms)),
        }
    }
}

/// RFC 3339 in UTC with whole seconds. Moments outside 1970 to 9999 are shown as the nearest end.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LAST: u64 = 253_402_300_799; // 9999-12-31T23:59:59Z
        let secs = self.unix_duration().as_secs().min(LAST);
        humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(secs)).fmt(f)
    }
}

/// A [`Timestamp`] as a text in RFC 3339, for documents that people read and programs exchange:
/// `#[serde(with = "rfc3339")]`.
pub mod rfc3339 {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::Timestamp;

    /// Writes it in UTC with whole seconds.
    ///
    /// # Errors
    /// Errors of the serializer.
    pub fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(time)
    }

    /// Reads it.
    ///
    /// # Errors
    /// Errors of the deserializer, and texts that are not in RFC 3339.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = humantime::parse_rfc3339(&text);
        time.map(Timestamp::from).map_err(|_| serde::de::Error::custom("a time is not in RFC 3339"))
    }

    /// The same for a member that may be missing: also `#[serde(default)]`.
    pub mod option {
        use serde::{Deserialize, Deserializer, Serializer};

        use super::super::Timestamp;

        #[derive(Deserialize)]
        struct Rfc3339(#[serde(with = "super")] Timestamp);

        /// Writes it, or null.
        ///
        /// # Errors
        /// Errors of the serializer.
        pub fn serialize<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
            match time {
                Some(time) => serializer.collect_str(time),
                None => serializer.serialize_none(),
            }
        }

        /// Reads it.
        ///
        /// # Errors
        /// As for a time that cannot be missing.
        pub fn deserialize<'de, D: Deserializer<'de>>(
            deserializer: D,
        ) -> Result<Option<Timestamp>, D::Error> {
            Ok(Option::<Rfc3339>::deserialize(deserializer)?.map(|time| time.0))
        }
    }
}

/// Milliseconds since this boot, time in suspend included: waits are measured on it, so a wrong or
/// corrected wall clock neither shortens nor stretches them (miaf-v0 E8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootTime(u64);

impl BootTime {
    /// Creates it from milliseconds since boot.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// This moment and `d` more.
    #[must_use]
    pub fn after(self, d: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(d.as_millis()).unwrap_or(u64::MAX)))
    }

    /// The duration until `later`; zero when it has passed.
    pub fn until(self, later: Self) -> Duration {
        Duration::from_millis(later.0.saturating_sub(self.0))
    }
}

/// Both clocks, read together, and whether the wall clock was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// The wall clock: for everything that a certificate says.
    pub wall: Timestamp,
    /// The boot clock: for every wait.
    pub boot: BootTime,
    /// A time service has set the wall clock since this boot.
    pub synchronised: bool,
}

/// A time from a trusted source, and the boot time at which it was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProvenTime {
    /// The time of the source. It was not earlier.
    pub wall: Timestamp,
    /// When it was received.
    pub at: BootTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamp_is_shown_in_rfc_3339_at_both_ends() {
        assert_eq!(Timestamp::from_secs(1_700_000_000).to_string(), "2023-11-14T22:13:20Z");
        assert_eq!(Timestamp::from_millis(i64::MIN).to_string(), "1970-01-01T00:00:00Z");
        assert_eq!(Timestamp::from_millis(i64::MAX).to_string(), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn moment_that_has_passed_is_due_now() {
        let t = Timestamp::from_secs(100);
        assert_eq!(t.until(Timestamp::from_secs(90)), Duration::ZERO);
        assert_eq!(t.until(t.after(Duration::from_secs(5))), Duration::from_secs(5));
    }
}
