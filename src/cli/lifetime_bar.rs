//! The lifetime of an SVID as a bar of characters that every terminal has.

use miaf_client::api::SvidStatus;
use miaf_spiffe::time::Timestamp;

const WIDTH: usize = 50;

/// Draws the bar and its legend. `None`: the times are no lifetime.
pub(super) fn bar(svid: &SvidStatus, now: Timestamp) -> Option<[String; 2]> {
    let (begin, end) = (svid.not_before, svid.not_after);
    let lifetime = begin.until(end);
    if lifetime.is_zero() {
        return None;
    }
    let elapsed = |at: Timestamp| (begin.until(at).as_secs_f64() / lifetime.as_secs_f64()).min(1.0);
    let column = |at: Timestamp| ((elapsed(at) * WIDTH as f64) as usize).min(WIDTH - 1);
    let here = column(now);
    let renewal = svid.renew_at.map(column);
    let window = svid.renewal_window.map(|window| column(window.from)..=column(window.to));
    let signs = (0..WIDTH).map(|at| match at {
        _ if at == here => '>',
        _ if renewal == Some(at) => 'R',
        _ if window.as_ref().is_some_and(|window| window.contains(&at)) => '~',
        _ if at < here => '=',
        _ => '-',
    });
    let mut legend = match now {
        _ if now > end => "> now: expired".to_owned(),
        _ if now < begin => "> now: not valid yet".to_owned(),
        _ => format!("> now, {:.0} % of the lifetime elapsed", elapsed(now) * 100.0),
    };
    if renewal.is_some() {
        legend.push_str(", R renewal");
    }
    if window.is_some() {
        legend.push_str(", ~ renewal window");
    }
    Some([format!("[{}]", signs.collect::<String>()), legend])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::render::tests::{example, time};

    fn svid() -> SvidStatus {
        example().0.identities.remove(0).svid.unwrap()
    }

    fn at(now: &str) -> [String; 2] {
        bar(&svid(), time(now)).unwrap()
    }

    #[test]
    fn bar_shows_now_the_window_and_the_renewal() {
        let legend = |begin: &str| format!("{begin}, R renewal, ~ renewal window");
        for (now, bar, legend_begin) in [
            (
                "2026-01-01T06:00:00Z",
                "[======>-------------~~~R~~~~~~~-------------------]",
                "> now, 12 % of the lifetime elapsed",
            ),
            (
                "2026-01-02T00:00:00Z",
                "[====================~~~R~>~~~~~-------------------]",
                "> now, 50 % of the lifetime elapsed",
            ),
            (
                "2026-01-02T23:59:59Z",
                "[====================~~~R~~~~~~~==================>]",
                "> now, 100 % of the lifetime elapsed",
            ),
            (
                "2026-02-02T00:00:00Z",
                "[====================~~~R~~~~~~~==================>]",
                "> now: expired",
            ),
            (
                "2025-12-31T00:00:00Z",
                "[>-------------------~~~R~~~~~~~-------------------]",
                "> now: not valid yet",
            ),
        ] {
            assert_eq!(at(now), [bar.to_owned(), legend(legend_begin)], "{now}");
        }
    }

    #[test]
    fn bar_shows_what_is_known_and_needs_a_lifetime() {
        let (_, now) = example();
        let svid = SvidStatus { renew_at: None, renewal_window: None, ..svid() };
        let [bar_of_two, legend] = bar(&svid, now).unwrap();
        assert_eq!(bar_of_two.trim_matches(['=', '-', '[', ']']), ">");
        assert_eq!(legend, "> now, 50 % of the lifetime elapsed");
        let none = SvidStatus { not_after: svid.not_before, ..svid };
        assert_eq!(bar(&none, now), None);
    }
}
