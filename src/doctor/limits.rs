//! Descriptors: each connection through the proxy takes two.

use super::Finding;

const ABOUT: &str = "limits";
/// Half as many connections.
const ENOUGH: u64 = 65_536;

pub fn look() -> Vec<Finding> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the call gets a pointer to a struct that outlives it.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0;
    let hard = limit.rlim_max;
    vec![match known {
        false => Finding::skipped(ABOUT, "the limit of descriptors can't be read"),
        true if hard < ENOUGH => Finding::warn(
            ABOUT,
            format!("{hard} descriptors at most: some {} connections", hard / 2),
            "raise the hard limit: LimitNOFILE=1048576 in the systemd unit, or ulimit -Hn (this shell's was read; a \
             service may have another)",
        ),
        true => Finding::ok(
            ABOUT,
            format!("{hard} descriptors: some {} connections", hard / 2),
        ),
    }]
}
