//! Tables for people: columns as wide as their widest cell, two spaces between them. On a terminal the last column, which is
//! the one of sentences, is broken where the terminal ends; into a pipe each row is one line.

use std::io::IsTerminal;
use std::os::fd::AsRawFd;

/// Rows under a header.
pub struct Table {
    rows: Vec<Vec<String>>,
    /// Where lines end; none: nowhere.
    width: Option<usize>,
}

/// Columns that the last cell must have left to be broken: less is worse than a long line.
const ROOM: usize = 24;

impl Table {
    /// A table with these column names.
    pub fn new(header: &[&str]) -> Self {
        Table {
            rows: vec![header.iter().map(ToString::to_string).collect()],
            width: terminal_width(&std::io::stdout()),
        }
    }

    /// Adds a row; empty cells show as `-`.
    pub fn row(&mut self, cells: Vec<String>) {
        let shown = |cell: String| {
            if cell.is_empty() {
                "-".to_owned()
            } else {
                cell
            }
        };
        self.rows.push(cells.into_iter().map(shown).collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|c| {
                let cells = self.rows.iter().filter_map(|row| row.get(c));
                cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        for row in &self.rows {
            let mut line = String::new();
            let last = row.len().saturating_sub(1);
            for (cell, width) in row.iter().zip(&widths).take(last) {
                line.push_str(&format!("{cell:width$}  "));
            }
            let indent = line.chars().count();
            let room = self.width.and_then(|w| w.checked_sub(indent));
            let cell = row.last().map_or("", String::as_str);
            for (index, part) in broken(cell, room).iter().enumerate() {
                match index {
                    0 => writeln!(f, "{}", format!("{line}{part}").trim_end())?,
                    _ => writeln!(f, "{:indent$}{part}", "")?,
                }
            }
        }
        Ok(())
    }
}

/// A text whose lines are broken where the terminal ends, if that is what it is written to.
pub fn fitted(text: &str, to: &(impl IsTerminal + AsRawFd)) -> String {
    let width = terminal_width(to);
    let lines = text.lines().flat_map(|line| broken(line, width));
    lines.collect::<Vec<_>>().join("\n")
}

/// The columns of a terminal; none where it is none.
fn terminal_width(to: &(impl IsTerminal + AsRawFd)) -> Option<usize> {
    if !to.is_terminal() {
        return None;
    }
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the call gets a pointer to a struct that outlives it.
    let known = unsafe { libc::ioctl(to.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) } == 0;
    (known && size.ws_col > 0).then(|| usize::from(size.ws_col))
}

/// Lines of at most `room` characters, broken at spaces; a longer word stays whole.
fn broken(text: &str, room: Option<usize>) -> Vec<String> {
    let Some(room) = room.filter(|room| *room >= ROOM) else {
        return vec![text.to_owned()];
    };
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split(' ') {
        let chars = word.chars().count();
        let begun = lines.last().is_some_and(|line| !line.is_empty());
        if begun && used + 1 + chars > room {
            lines.push(String::new());
            used = 0;
        } else if begun {
            used += 1;
            lines.last_mut().into_iter().for_each(|line| line.push(' '));
        }
        lines
            .last_mut()
            .into_iter()
            .for_each(|line| line.push_str(word));
        used += chars;
    }
    lines
}

/// How long ago, in its largest unit: `45s`, `3m`, `7h`, `12d`.
pub fn age(duration: std::time::Duration) -> String {
    let s = duration.as_secs();
    match s {
        0..120 => format!("{s}s"),
        120..7200 => format!("{}m", s / 60),
        7200..172_800 => format!("{}h", s / 3600),
        _ => format!("{}d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn columns_line_up_and_no_line_ends_in_spaces() {
        let mut table = Table::new(&["NAME", "STATE"]);
        table.row(vec!["web/a:http".into(), "ready".into()]);
        table.row(vec!["db".into(), String::new()]);
        assert_eq!(
            table.to_string(),
            "NAME        STATE\nweb/a:http  ready\ndb          -\n"
        );
    }

    #[test]
    fn on_a_terminal_the_last_column_is_broken_within_itself() {
        let mut table = Table::new(&["NAME", "REASON"]);
        table.row(vec![
            "web".into(),
            "one two three four five six seven".into(),
        ]);
        table.width = Some(30);
        assert_eq!(
            table.to_string(),
            "NAME  REASON\nweb   one two three four five\n      six seven\n"
        );
        table.width = Some(20);
        assert!(
            table
                .to_string()
                .ends_with("one two three four five six seven\n")
        );
    }

    #[test]
    fn ages_are_short() {
        for (seconds, text) in [
            (5, "5s"),
            (119, "119s"),
            (180, "3m"),
            (7200, "2h"),
            (864_000, "10d"),
        ] {
            assert_eq!(age(Duration::from_secs(seconds)), text);
        }
    }
}
