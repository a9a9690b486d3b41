//! Large pages for the table, which is read at random: of pages of 4 KiB a zone of 100,000 services has so many that most
//! answers would begin with a walk through the page tables.

use std::collections::HashMap;

/// What one large page holds, on the processors that we are built for.
const PAGE: usize = 2 << 20;

/// Asks for large pages where at least half of one is taken by memory of these addresses and lengths. The rest of it is
/// somebody else's, and stays what it is: this is advice about how memory is mapped, and not about what is in it.
///
/// Without transparent huge pages, or where they are full up, nothing changes.
pub(super) fn advise(places: impl Iterator<Item = (usize, usize)>) {
    let mut used: HashMap<usize, usize> = HashMap::new();
    for (address, length) in places {
        *used.entry(address / PAGE).or_default() += length;
    }
    for (page, bytes) in used {
        if bytes < PAGE / 2 {
            continue;
        }
        let start = std::ptr::without_provenance_mut(page * PAGE);
        // SAFETY: neither advice changes what memory holds, nor what may be done with it. A place that is not mapped is
        // an error and nothing else.
        unsafe {
            if libc::madvise(start, PAGE, libc::MADV_HUGEPAGE) == 0 {
                // At once rather than when the kernel comes by; kernels before 6.1 don't know it.
                libc::madvise(start, PAGE, libc::MADV_COLLAPSE);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// KiB of large pages in the mapping that an address belongs to.
    fn large(address: usize) -> u64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in maps.lines() {
            let range = line.split(' ').next().and_then(|word| word.split_once('-'));
            let range = range.and_then(|(from, to)| {
                let number = |text| usize::from_str_radix(text, 16).ok();
                Some(number(from)?..number(to)?)
            });
            if let Some(range) = range {
                inside = range.contains(&address);
            } else if let Some(rest) = line.strip_prefix("AnonHugePages:").filter(|_| inside) {
                return rest.split_whitespace().next().unwrap().parse().unwrap();
            }
        }
        panic!("no mapping of {address:x}");
    }

    #[test]
    fn memory_that_fills_large_pages_gets_them_and_keeps_what_it_holds() {
        let state = "/sys/kernel/mm/transparent_hugepage/enabled";
        let state = std::fs::read_to_string(state).unwrap_or_default();
        if state.is_empty() || state.contains("[never]") {
            eprintln!("SKIPPED: no transparent huge pages on this machine");
            return;
        }
        let memory: Vec<u8> = (0..4 * PAGE).map(|at| at as u8).collect();
        let address = memory.as_ptr().addr();
        advise((0..4 * PAGE).step_by(100).map(|at| (address + at, 100)));
        assert!(
            memory
                .iter()
                .enumerate()
                .all(|(at, byte)| *byte == at as u8)
        );
        let got = large(address.next_multiple_of(PAGE));
        // An old kernel, or one without free memory in one piece, does it later.
        if got == 0 {
            eprintln!("SKIPPED: no large page was to be had at once");
            return;
        }
        // What fills less than half of one is left alone.
        let sparse = vec![7u8; 4 * PAGE];
        let address = sparse.as_ptr().addr();
        advise((0..4 * PAGE).step_by(1000).map(|at| (address + at, 100)));
        assert_eq!(large(address.next_multiple_of(PAGE)), 0);
    }
}
