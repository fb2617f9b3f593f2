//! The life of an SVID as a bar of characters that every terminal has.

use std::time::SystemTime;

use crate::publish::status::SvidStatus;

const WIDTH: usize = 50;

/// The bar and what its signs mean. `None`: the times make no sense.
pub(super) fn bar(svid: &SvidStatus, now: SystemTime) -> Option<[String; 2]> {
    let moment = |rfc3339: &str| humantime::parse_rfc3339_weak(rfc3339).ok();
    let (begin, end) = (moment(&svid.not_before)?, moment(&svid.not_after)?);
    let life = end.duration_since(begin).ok().filter(|life| !life.is_zero())?;
    let gone = |at: SystemTime| {
        let since = at.duration_since(begin).unwrap_or_default(); // before it: at its beginning
        (since.as_secs_f64() / life.as_secs_f64()).min(1.0)
    };
    let place = |at: SystemTime| ((gone(at) * WIDTH as f64) as usize).min(WIDTH - 1);
    let here = place(now);
    let renewal = svid.renew_at.as_deref().and_then(moment).map(place);
    let window = svid.renewal_window.as_ref().and_then(|window| {
        let (from, to) = (moment(&window.from)?, moment(&window.to)?);
        Some(place(from)..=place(to))
    });
    let signs = (0..WIDTH).map(|at| match at {
        _ if at == here => '>',
        _ if renewal == Some(at) => 'R',
        _ if window.as_ref().is_some_and(|window| window.contains(&at)) => '~',
        _ if at < here => '=',
        _ => '-',
    });
    let mut legend = match now {
        _ if now > end => "> now: its time is over".to_owned(),
        _ if now < begin => "> now: its time is still to come".to_owned(),
        _ => format!("> now, {:.0} % of its time gone", gone(now) * 100.0),
    };
    if renewal.is_some() {
        legend.push_str(", R renewal");
    }
    if window.is_some() {
        legend.push_str(", ~ the time that renewals are spread over");
    }
    Some([format!("[{}]", signs.collect::<String>()), legend])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::words::tests::example;

    fn at(now: &str) -> [String; 2] {
        bar(&example().0.svid.unwrap(), humantime::parse_rfc3339(now).unwrap()).unwrap()
    }

    #[test]
    fn it_shows_now_the_window_and_the_renewal() {
        let legend = |begin: &str| format!("{begin}, R renewal, ~ the time that renewals are spread over");
        for (now, bar, says) in [
            (
                "2026-01-01T06:00:00Z",
                "[======>-------------~~~R~~~~~~~-------------------]",
                "> now, 12 % of its time gone",
            ),
            (
                "2026-01-02T00:00:00Z",
                "[====================~~~R~>~~~~~-------------------]",
                "> now, 50 % of its time gone",
            ),
            (
                "2026-01-02T23:59:59Z",
                "[====================~~~R~~~~~~~==================>]",
                "> now, 100 % of its time gone",
            ),
            (
                "2026-02-02T00:00:00Z",
                "[====================~~~R~~~~~~~==================>]",
                "> now: its time is over",
            ),
            (
                "2025-12-31T00:00:00Z",
                "[>-------------------~~~R~~~~~~~-------------------]",
                "> now: its time is still to come",
            ),
        ] {
            assert_eq!(at(now), [bar.to_owned(), legend(says)], "{now}");
        }
    }

    #[test]
    fn it_shows_what_is_known_and_nothing_for_a_life_without_length() {
        let (status, now) = example();
        let svid = SvidStatus { renew_at: None, renewal_window: None, ..status.svid.unwrap() };
        let [bar_of_two, legend] = bar(&svid, now).unwrap();
        assert_eq!(bar_of_two.trim_matches(['=', '-', '[', ']']), ">");
        assert_eq!(legend, "> now, 50 % of its time gone");
        let none = SvidStatus { not_after: svid.not_before.clone(), ..svid };
        assert_eq!(bar(&none, now), None);
    }
}
