//! The string form of a selector.
//!
//! ```text
//! selector    = [ requirement *( "," requirement ) ]
//! requirement = [ "!" ] KEY
//!             / KEY ( "=" / "==" / "!=" ) [ VALUE ]
//!             / KEY ( "<" / ">" ) INTEGER
//!             / KEY ( "in" / "notin" ) "(" values ")"
//! ```
//! Space, tab, CR and LF separate words and mean nothing else. `in` and `notin` are operators only where
//! an operator stands; elsewhere they are keys or values. A word is any run of characters other than
//! white space and `=!(),<>`: what keys and values may contain is checked afterwards, as in Kubernetes.

use super::{Place, Requirement, SelectorError, Test, checked_key, checked_value, value_set};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    End,
    Word,
    Comma,
    Open,
    Close,
    Not,
    Equals,
    NotEquals,
    Greater,
    Less,
}

/// A token and the byte at which it starts.
#[derive(Debug, Clone, Copy)]
struct Token<'a> {
    kind: Kind,
    text: &'a str,
    start: usize,
}

/// Reads the requirements in the order in which they are written.
pub(super) fn requirements(text: &str) -> Result<Vec<Requirement>, SelectorError> {
    let mut parser = Parser { text, next: 0 };
    let mut requirements = Vec::new();
    if parser.peek().kind == Kind::End {
        return Ok(requirements);
    }
    loop {
        requirements.push(parser.requirement()?);
        let token = parser.take();
        match token.kind {
            Kind::End => return Ok(requirements),
            Kind::Comma => {}
            _ => return Err(parser.unexpected(token, "`,` or the end of the selector")),
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    /// The byte at which the next token's search starts.
    next: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Token<'a> {
        let rest = &self.text[self.next..];
        let trimmed = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        let start = self.next + (rest.len() - trimmed.len());
        let token = |kind, length| Token {
            kind,
            text: &trimmed[..length],
            start,
        };
        let mut characters = trimmed.chars();
        match (characters.next(), characters.next()) {
            (None, _) => token(Kind::End, 0),
            (Some('='), Some('=')) => token(Kind::Equals, 2),
            (Some('='), _) => token(Kind::Equals, 1),
            (Some('!'), Some('=')) => token(Kind::NotEquals, 2),
            (Some('!'), _) => token(Kind::Not, 1),
            (Some(','), _) => token(Kind::Comma, 1),
            (Some('('), _) => token(Kind::Open, 1),
            (Some(')'), _) => token(Kind::Close, 1),
            (Some('>'), _) => token(Kind::Greater, 1),
            (Some('<'), _) => token(Kind::Less, 1),
            (Some(_), _) => {
                let ends = |c| {
                    matches!(c, ' ' | '\t' | '\r' | '\n')
                        || matches!(c, '=' | '!' | '(' | ')' | ',' | '>' | '<')
                };
                token(Kind::Word, trimmed.find(ends).unwrap_or(trimmed.len()))
            }
        }
    }

    fn take(&mut self) -> Token<'a> {
        let token = self.peek();
        self.next = token.start + token.text.len();
        token
    }

    /// Counted only when there is an error to report.
    fn place(&self, token: Token<'_>) -> Place {
        Place::Character(self.text[..token.start].chars().count() + 1)
    }

    fn unexpected(&self, token: Token<'_>, expected: &'static str) -> SelectorError {
        SelectorError::Unexpected {
            place: self.place(token),
            found: token.text.to_owned(),
            expected,
        }
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let mut token = self.take();
        let negated = token.kind == Kind::Not;
        if negated {
            token = self.take();
        }
        if token.kind != Kind::Word {
            let expected = if negated { "a key" } else { "a key or `!`" };
            return Err(self.unexpected(token, expected));
        }
        let key = checked_key(token.text, || self.place(token))?;
        if negated {
            // Whatever follows other than a comma is the caller's error: `!x=a` is none.
            return Ok(Requirement {
                key,
                test: Test::Absent,
            });
        }
        if matches!(self.peek().kind, Kind::End | Kind::Comma) {
            return Ok(Requirement {
                key,
                test: Test::Exists,
            });
        }
        let operator = self.take();
        let test = match (operator.kind, operator.text) {
            (Kind::Equals, _) => Test::In(Box::new([self.value(&key)?])),
            (Kind::NotEquals, _) => Test::NotIn(Box::new([self.value(&key)?])),
            (Kind::Greater, _) => Test::GreaterThan(self.integer(&key)?),
            (Kind::Less, _) => Test::LessThan(self.integer(&key)?),
            (Kind::Word, "in") => Test::In(self.set(&key)?),
            (Kind::Word, "notin") => Test::NotIn(self.set(&key)?),
            _ => {
                let expected =
                    "`,`, `=`, `==`, `!=`, `in`, `notin`, `<`, `>` or the end of the selector";
                return Err(self.unexpected(operator, expected));
            }
        };
        Ok(Requirement { key, test })
    }

    /// The right side of an equality; nothing there is the empty value.
    fn exact(&mut self) -> Result<Token<'a>, SelectorError> {
        let token = self.peek();
        match token.kind {
            Kind::End | Kind::Comma => Ok(Token { text: "", ..token }),
            Kind::Word => Ok(self.take()),
            _ => Err(self.unexpected(token, "a value")),
        }
    }

    fn value(&mut self, key: &str) -> Result<Box<str>, SelectorError> {
        let token = self.exact()?;
        checked_value(key, token.text, || self.place(token))
    }

    fn integer(&mut self, key: &str) -> Result<i64, SelectorError> {
        let token = self.exact()?;
        checked_value(key, token.text, || self.place(token))?;
        token.text.parse().map_err(|_| SelectorError::NotAnInteger {
            place: self.place(token),
            key: key.to_owned(),
            value: token.text.to_owned(),
        })
    }

    /// The parenthesised values. A comma without a value on one of its sides stands for the empty value,
    /// as do empty parentheses. Commas before the closing parenthesis come singly or, after others, in
    /// odd number: `(a,)` and `(a,,,)` are sets in Kubernetes, `(a,,)` is none.
    fn set(&mut self, key: &str) -> Result<Box<[Box<str>]>, SelectorError> {
        let open = self.take();
        if open.kind != Kind::Open {
            return Err(self.unexpected(open, "`(`"));
        }
        let mut values: Vec<Box<str>> = Vec::new();
        let mut commas = 0usize;
        loop {
            let token = self.take();
            match token.kind {
                Kind::Word if values.is_empty() || commas > 0 => {
                    let first = values.is_empty();
                    if commas > 1 || (first && commas > 0) {
                        values.push("".into());
                    }
                    values.push(checked_value(key, token.text, || self.place(token))?);
                    commas = 0;
                }
                Kind::Comma => commas += 1,
                Kind::Close if commas == 0 || commas % 2 == 1 => {
                    if commas > 0 || values.is_empty() {
                        values.push("".into());
                    }
                    return Ok(value_set(values));
                }
                Kind::Close => return Err(self.unexpected(token, "a value or `,`")),
                _ if commas == 0 && !values.is_empty() => {
                    return Err(self.unexpected(token, "`,` or `)`"));
                }
                _ => return Err(self.unexpected(token, "a value, `,` or `)`")),
            }
        }
    }
}
