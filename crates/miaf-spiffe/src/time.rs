//! Points in time as plain values. Nothing here reads a clock: the caller does.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

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

    /// Parses a date and time of RFC 3339, with any offset from UTC. Fractions of a millisecond are
    /// cut off. Moments after 2038 are read on 32-bit machines too: `SystemTime` has no part in it.
    pub fn from_rfc3339(text: &str) -> Option<Self> {
        let t = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        i64::try_from(t.unix_timestamp_nanos().div_euclid(1_000_000)).ok().map(Self)
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
        const LAST: i64 = 253_402_300_799; // 9999-12-31T23:59:59Z
        let secs = self.0.div_euclid(1000).clamp(0, LAST);
        let t = OffsetDateTime::from_unix_timestamp(secs).map_err(|_| fmt::Error)?;
        let (date, time) = (t.date(), t.time());
        let (year, month, day) = (date.year(), u8::from(date.month()), date.day());
        let (hour, minute, second) = time.as_hms();
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
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
        Timestamp::from_rfc3339(&text).ok_or_else(|| serde::de::Error::custom("a time is not in RFC 3339"))
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
    fn rfc_3339_is_read_with_offsets_fractions_and_far_ahead() {
        let t = Timestamp::from_rfc3339;
        assert_eq!(t("2023-11-14T22:13:20Z"), Some(Timestamp::from_secs(1_700_000_000)));
        assert_eq!(t("2023-11-15T00:13:20.5+02:00"), Some(Timestamp::from_millis(1_700_000_000_500)));
        assert_eq!(t("9999-12-31T23:59:59Z"), Some(Timestamp::from_secs(253_402_300_799)));
        for refused in ["", "2023-11-14", "2023-11-14T22:13:20", "2023-02-30T00:00:00Z", "1700000000"] {
            assert_eq!(t(refused), None, "{refused}");
        }
    }

    #[test]
    fn moment_that_has_passed_is_due_now() {
        let t = Timestamp::from_secs(100);
        assert_eq!(t.until(Timestamp::from_secs(90)), Duration::ZERO);
        assert_eq!(t.until(t.after(Duration::from_secs(5))), Duration::from_secs(5));
    }
}
