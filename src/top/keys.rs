//! What is selected, sorted and shown, and the keys that change it.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use model::ServiceKey;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::data::{Service, View};

/// What comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Sort {
    /// The most requests a second
    Rate,
    /// The most failing
    Errors,
    /// The slowest
    Latency,
    /// The most open connections
    Connections,
    /// By namespace and name
    Name,
}

impl Sort {
    const ALL: [Sort; 5] = [
        Sort::Rate,
        Sort::Errors,
        Sort::Latency,
        Sort::Connections,
        Sort::Name,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Sort::Rate => "rate",
            Sort::Errors => "errors",
            Sort::Latency => "latency",
            Sort::Connections => "connections",
            Sort::Name => "name",
        }
    }

    fn next(self) -> Sort {
        let at = Sort::ALL.iter().position(|s| *s == self).unwrap_or(0);
        Sort::ALL[(at + 1) % Sort::ALL.len()]
    }

    /// Sorts, equals by name.
    pub fn apply(self, services: &mut [Service]) {
        let micros = |f: f64| (f * 1e6) as u64;
        services.sort_by_cached_key(|s| {
            let rates = s.rates();
            let first = match self {
                Sort::Rate => micros(rates.requests.max(rates.connections)),
                Sort::Errors => micros(rates.errors),
                Sort::Latency => micros(rates.p99.unwrap_or(0.0)),
                Sort::Connections => rates.active,
                Sort::Name => 0,
            };
            (Reverse(first), s.key.clone())
        });
    }
}

/// What the user has chosen.
pub struct Ui {
    pub view: View,
    pub sort: Sort,
    /// The service that is marked; it stays marked wherever it goes.
    pub selected: Option<ServiceKey>,
    /// Services whose endpoints are shown.
    pub open: BTreeSet<ServiceKey>,
    pub paused: bool,
    /// Why what is shown is old.
    pub trouble: Option<String>,
}

impl Ui {
    pub fn new(sort: Sort) -> Ui {
        Ui {
            view: View::default(),
            sort,
            selected: None,
            open: BTreeSet::new(),
            paused: false,
            trouble: None,
        }
    }

    /// Takes what a further look has shown.
    pub fn take(&mut self, view: View) {
        self.trouble = None;
        self.view = view;
        self.sort.apply(&mut self.view.services);
        if self.at().is_none() {
            self.selected = self.view.services.first().map(|s| s.key.clone());
        }
    }

    /// Where the marked service is.
    pub fn at(&self) -> Option<usize> {
        let selected = self.selected.as_ref()?;
        self.view.services.iter().position(|s| s.key == *selected)
    }

    /// Does what a key says; whether that is to end.
    pub fn press(&mut self, key: KeyEvent) -> bool {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return true,
            KeyCode::Char('c') if control => return true,
            KeyCode::Up | KeyCode::Char('k') => self.step(-1),
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::PageUp => self.step(-10),
            KeyCode::PageDown => self.step(10),
            KeyCode::Home => self.step(isize::MIN),
            KeyCode::End => self.step(isize::MAX),
            KeyCode::Enter | KeyCode::Char(' ') => self.toggle(),
            KeyCode::Char('e') => self.toggle_all(),
            KeyCode::Char('p') => self.paused = !self.paused,
            KeyCode::Char('s') => {
                self.sort = self.sort.next();
                self.sort.apply(&mut self.view.services);
            }
            _ => {}
        }
        false
    }

    fn step(&mut self, by: isize) {
        let last = self.view.services.len().saturating_sub(1);
        let at = self.at().unwrap_or(0).saturating_add_signed(by).min(last);
        self.selected = self.view.services.get(at).map(|s| s.key.clone());
    }

    fn toggle(&mut self) {
        if let Some(selected) = &self.selected
            && !self.open.remove(selected)
        {
            self.open.insert(selected.clone());
        }
    }

    fn toggle_all(&mut self) {
        let all: BTreeSet<ServiceKey> = self.view.services.iter().map(|s| s.key.clone()).collect();
        self.open = match self.open.is_superset(&all) {
            true => BTreeSet::new(),
            false => all,
        };
    }
}
