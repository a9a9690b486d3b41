//! Signals by name and number, as Linux numbers them on every architecture that heddle runs on.

/// A signal's number.
pub(super) type Signal = u8;

pub(super) const SIGTERM: Signal = 15;
const SIGINT: Signal = 2;
const SIGQUIT: Signal = 3;
const SIGKILL: Signal = 9;

const NAMES: [(&str, Signal); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// Reads `SIGTERM`, `TERM`, `15` or `SIGRTMIN+3`.
pub(super) fn parse(text: &str) -> Option<Signal> {
    let text = text.trim().to_ascii_uppercase();
    if let Ok(number) = text.parse::<Signal>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = text.strip_prefix("SIG").unwrap_or(&text);
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return realtime(34, rest);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return realtime(64, rest);
    }
    NAMES.iter().find(|(n, _)| *n == name).map(|(_, s)| *s)
}

fn realtime(base: i16, offset: &str) -> Option<Signal> {
    let offset: i16 = if offset.is_empty() {
        0
    } else {
        offset.parse().ok()?
    };
    Signal::try_from(base.checked_add(offset)?)
        .ok()
        .filter(|n| (34..=64).contains(n))
}

/// `SIGTERM`, or the number where there is no name.
pub(super) fn name(signal: Signal) -> String {
    match NAMES.iter().find(|(_, s)| *s == signal) {
        Some((name, _)) => format!("SIG{name}"),
        None => format!("signal {signal}"),
    }
}

/// Whether a container that got this signal is meant to end. `SIGHUP`, `SIGUSR1` and the like mean something else (reload,
/// reopen logs), unless one of them is the container's own stop signal.
pub(super) fn ends(signal: Signal, stop_signal: Signal) -> bool {
    signal == stop_signal || [SIGTERM, SIGINT, SIGQUIT, SIGKILL].contains(&signal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_in_every_spelling_that_docker_takes() {
        for (text, signal) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("15", Some(15)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("SIGRTMIN", Some(34)),
            ("SIGNOPE", None),
            ("0", None),
            ("99", None),
            ("RTMAX+1", None),
            ("", None),
        ] {
            assert_eq!(parse(text), signal, "{text}");
        }
    }

    #[test]
    fn a_reload_is_no_end_unless_it_is_the_stop_signal() {
        assert!(ends(15, 15));
        assert!(ends(9, 15));
        assert!(!ends(1, 15));
        assert!(!ends(10, 15));
        assert!(ends(1, 1));
        assert_eq!(name(15), "SIGTERM");
        assert_eq!(name(37), "signal 37");
    }
}
