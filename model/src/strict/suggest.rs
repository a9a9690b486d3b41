//! The nearest known word to one that is unknown.

/// Words longer than this are no misspellings of a field.
const MAX_CHARS: usize = 64;

/// The candidate that `word` is most likely meant to be, or `None` when all are far from it. Upper and
/// lower case, `-`, `_` and `.` make no difference (`node_port` is near `nodePort`); beyond that, one edit
/// (insertion, removal, replacement, exchange of neighbours) for every three characters is tolerated.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = folded(word)?;
    candidates
        .into_iter()
        .filter_map(|candidate| {
            let known = folded(candidate)?;
            let edits = distance(&word, &known);
            let tolerated = (word.len().max(known.len()) / 3).max(1);
            // Replacing every character of a short word is not misspelling it.
            let shared = edits < word.len().min(known.len());
            (edits <= tolerated && (shared || edits == 0)).then_some((edits, candidate))
        })
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

fn folded(word: &str) -> Option<Vec<char>> {
    let folded: Vec<char> = word
        .chars()
        .filter(|c| !matches!(c, '-' | '_' | '.'))
        .take(MAX_CHARS + 1)
        .map(|c| c.to_ascii_lowercase())
        .collect();
    (folded.len() <= MAX_CHARS).then_some(folded)
}

/// The optimal string alignment distance, in three rows.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = vec![0; b.len() + 1];
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row[j] = best;
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}
