//! How it is drawn.

use model::State;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState};

use super::data::{Endpoint, FIGURES, Service, figures};
use super::keys::Ui;
use crate::traffic::Rates;

const KEYS: &str = " q quit  ↑↓ move  enter endpoints  e all endpoints  s sort  p pause";

pub fn draw(frame: &mut Frame<'_>, ui: &Ui) {
    let [head, body, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(title(ui)), head);
    let mut rows = Vec::new();
    let mut marked = None;
    let selected = ui.at();
    for (index, service) in ui.view.services.iter().enumerate() {
        if selected == Some(index) {
            marked = Some(rows.len());
        }
        let open = ui.open.contains(&service.key);
        rows.push(service_row(service, open));
        if open {
            rows.extend(service.endpoints.iter().map(endpoint_row));
        }
    }
    let header = [&["SERVICE", "READY"][..], &FIGURES].concat();
    let header = Row::new(header).style(Style::new().add_modifier(Modifier::BOLD));
    let widths = [
        Constraint::Min(24),
        Constraint::Length(9),
        Constraint::Length(7),
        Constraint::Length(6),
        Constraint::Length(6),
        Constraint::Length(6),
        Constraint::Length(6),
        Constraint::Length(6),
        Constraint::Length(8),
    ];
    let table = Table::new(rows, widths)
        .header(header)
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::default().with_selected(marked);
    frame.render_stateful_widget(table, body, &mut state);
    let foot_style = Style::new().add_modifier(Modifier::DIM);
    frame.render_widget(Paragraph::new(KEYS).style(foot_style), foot);
}

fn title(ui: &Ui) -> Line<'_> {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let bad = Style::new().fg(Color::Red);
    let services = ui.view.services.len();
    let rate: f64 = ui.view.services.iter().map(|s| s.rates().requests).sum();
    let mut spans = vec![
        Span::styled(format!(" heddle top  {}", ui.view.node), bold),
        Span::raw(format!(
            "  {services} services  {rate:.0} req/s  by {}",
            ui.sort.as_str()
        )),
    ];
    if ui.paused {
        spans.push(Span::styled("  paused", Style::new().fg(Color::Yellow)));
    }
    match (&ui.trouble, ui.view.reasons.first()) {
        (Some(trouble), _) => spans.push(Span::styled(format!("  {trouble}"), bad)),
        (None, Some(reason)) => spans.push(Span::styled(format!("  {reason}"), bad)),
        (None, None) => {}
    }
    Line::from(spans)
}

fn service_row(service: &Service, open: bool) -> Row<'static> {
    let mark = if open { '-' } else { '+' };
    let none_ready = !service.endpoints.iter().any(|e| e.eligible);
    let mut cells = vec![
        Cell::from(format!("{mark} {}", service.key)),
        Cell::from(service.ready()).style(bad_if(none_ready)),
    ];
    cells.extend(figure_cells(service.rates));
    Row::new(cells)
}

fn figure_cells(rates: Option<Rates>) -> impl Iterator<Item = Cell<'static>> {
    let failing = rates.is_some_and(|r| r.errors > 0.0);
    let cell = move |(column, figure): (usize, String)| {
        Cell::from(figure).style(bad_if(column == 1 && failing))
    };
    figures(rates).into_iter().enumerate().map(cell)
}

fn bad_if(bad: bool) -> Style {
    match bad {
        true => Style::new().fg(Color::Red),
        false => Style::new(),
    }
}

fn endpoint_row(endpoint: &Endpoint) -> Row<'static> {
    let colour = match endpoint.state {
        State::Ready => Color::Green,
        State::Starting => Color::Cyan,
        State::Unhealthy => Color::Red,
        State::Draining => Color::Yellow,
    };
    let name = endpoint.name.split_once('/').map_or("", |(_, rest)| rest);
    let why = match endpoint.state {
        State::Ready => String::new(),
        _ => format!(": {}", endpoint.reason),
    };
    let on = match endpoint.node.as_str() {
        "" => String::new(),
        node => format!(" on {node}"),
    };
    let mut cells = vec![
        Cell::from(format!("    {name}{on}{why}")),
        Cell::from(endpoint.state.to_string()).style(Style::new().fg(colour)),
    ];
    cells.extend(figure_cells(endpoint.rates));
    Row::new(cells)
}
