//! Pages of labelled lines for people.

/// Lines are broken at a space before this, where they have one.
const COLUMNS: usize = 100;
/// Where the values of labels begin.
const VALUES: usize = 14;

/// A page under way.
#[derive(Default)]
pub struct Page {
    text: String,
}

impl Page {
    /// `Label:        value`; nothing for an empty value.
    pub fn field(&mut self, label: &str, value: &str) {
        if !value.is_empty() {
            let label = format!("{label}:");
            self.wrap(&format!("{label:VALUES$}{value}"), VALUES);
        }
    }

    /// The title of what follows.
    pub fn heading(&mut self, title: &str) {
        self.text.push_str(title);
        self.text.push_str(":\n");
    }

    /// A line below a heading.
    pub fn item(&mut self, text: &str) {
        self.wrap(&format!("  {text}"), 4);
    }

    /// A line below an item.
    pub fn detail(&mut self, label: &str, value: &str) {
        self.wrap(&format!("      {label:10} {value}"), 17);
    }

    /// A line below a heading whose further lines are indented.
    pub fn hanging(&mut self, text: &str, indent: usize) {
        self.wrap(&format!("  {text}"), indent);
    }

    /// Breaks at spaces between words; what a line begins with stays as it is.
    fn wrap(&mut self, text: &str, indent: usize) {
        let words = text.trim_start();
        let mut line = " ".repeat(text.len() - words.len());
        let mut width = line.len();
        let mut begun = false;
        for word in words.split(' ') {
            let chars = word.chars().count();
            if begun && width + 1 + chars > COLUMNS {
                self.line(&line);
                line = " ".repeat(indent);
                width = indent;
            } else if begun {
                line.push(' ');
                width += 1;
            }
            line.push_str(word);
            width += chars;
            begun = true;
        }
        self.line(&line);
    }

    fn line(&mut self, line: &str) {
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }

    /// The whole page.
    pub fn finish(self) -> String {
        self.text
    }
}
