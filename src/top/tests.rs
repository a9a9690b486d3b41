use model::{ServiceKey, State};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::data::{Endpoint, Service, View, bytes, latency, table};
use super::keys::{Sort, Ui};
use super::screen;
use crate::traffic::Rates;

fn service(name: &str, requests: f64, errors: f64, state: State) -> Service {
    let key: ServiceKey = format!("shop/{name}").parse().unwrap();
    Service {
        key,
        rates: Some(Rates {
            requests,
            errors,
            p50: Some(0.0004),
            p99: Some(0.012),
            connections: 2.0,
            active: 3,
            bytes: 2048.0,
        }),
        endpoints: vec![Endpoint {
            name: format!("{name}/a:http"),
            node: "n1".to_owned(),
            state,
            eligible: state == State::Ready,
            reason: "connection refused".to_owned(),
            rates: Some(Rates {
                requests: requests / 2.0,
                errors,
                p50: Some(0.0007),
                p99: Some(0.031),
                connections: 0.0,
                active: 2,
                bytes: 1024.0,
            }),
        }],
    }
}

fn view() -> View {
    View {
        node: "n1".to_owned(),
        reasons: Vec::new(),
        services: vec![
            service("api", 5.0, 0.5, State::Unhealthy),
            service("web", 250.0, 0.0, State::Ready),
        ],
    }
}

fn press(ui: &mut Ui, code: KeyCode) -> bool {
    ui.press(KeyEvent::new(code, KeyModifiers::NONE))
}

fn drawn(ui: &Ui) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(100, 9)).unwrap();
    terminal.draw(|frame| screen::draw(frame, ui)).unwrap();
    let buffer = terminal.backend().buffer().clone();
    let rows = buffer.content.chunks(usize::from(buffer.area.width));
    rows.map(|row| {
        let text: String = row.iter().map(|cell| cell.symbol()).collect();
        text.trim_end().to_owned()
    })
    .collect()
}

#[test]
fn services_are_drawn_by_rate_and_their_endpoints_on_demand() {
    let mut ui = Ui::new(Sort::Rate);
    ui.take(view());
    let lines = drawn(&ui);
    assert!(
        lines[0].contains("heddle top  n1  2 services  255 req/s  by rate"),
        "{lines:?}"
    );
    assert!(lines[2].starts_with("+ shop/web"), "{lines:?}");
    for figure in ["1/1", "250", "0.0%", "400us", "12ms", "2.0Ki"] {
        assert!(lines[2].contains(figure), "{figure}: {lines:?}");
    }
    assert!(
        lines[3].starts_with("+ shop/api") && lines[3].contains("50.0%"),
        "{lines:?}"
    );
    assert!(lines[8].contains("q quit"), "{lines:?}");
    press(&mut ui, KeyCode::Down);
    press(&mut ui, KeyCode::Enter);
    let lines = drawn(&ui);
    assert!(lines[3].starts_with("- shop/api"), "{lines:?}");
    for part in [
        "    a:http on n1: connection refused",
        "unhealthy",
        "2.5",
        "50.0%",
        "700us",
        "31ms",
        "1.0Ki",
    ] {
        assert!(lines[4].contains(part), "{part}: {lines:?}");
    }
}

#[test]
fn keys_sort_move_pause_and_end() {
    let mut ui = Ui::new(Sort::Rate);
    ui.take(view());
    press(&mut ui, KeyCode::Char('s'));
    assert_eq!(ui.sort, Sort::Errors);
    assert_eq!(ui.view.services[0].key.to_string(), "shop/api");
    assert_eq!(ui.at(), Some(1), "what is marked stays marked");
    press(&mut ui, KeyCode::Home);
    assert_eq!(ui.at(), Some(0));
    press(&mut ui, KeyCode::End);
    press(&mut ui, KeyCode::Down);
    assert_eq!(ui.at(), Some(1));
    press(&mut ui, KeyCode::Char('e'));
    assert_eq!(ui.open.len(), 2);
    press(&mut ui, KeyCode::Char('e'));
    assert!(ui.open.is_empty());
    press(&mut ui, KeyCode::Char('p'));
    assert!(ui.paused && drawn(&ui)[0].contains("paused"));
    assert!(press(&mut ui, KeyCode::Char('q')));
    assert!(ui.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)));
}

#[test]
fn a_small_terminal_and_an_empty_node_are_drawn_too() {
    let ui = Ui::new(Sort::Name);
    let mut terminal = Terminal::new(TestBackend::new(10, 3)).unwrap();
    terminal.draw(|frame| screen::draw(frame, &ui)).unwrap();
}

#[test]
fn the_table_for_pipes_has_services_and_endpoints() {
    let text = table(&view());
    assert!(
        text.starts_with("SERVICE   READY  REQ/S  ERRORS  P50    P99   CONNS  CONN/S  BYTES/S\n"),
        "{text}"
    );
    assert!(
        text.contains("\nENDPOINT         NODE  STATE      REQ/S  ERRORS  P50    P99   CONNS"),
        "{text}"
    );
    assert!(
        text.contains("shop/api/a:http  n1    unhealthy  2.5    50.0%   700us  31ms  2"),
        "{text}"
    );
}

#[test]
fn figures_have_a_unit_that_fits() {
    assert_eq!(latency(0.000_25), "250us");
    assert_eq!(latency(0.0025), "2.5ms");
    assert_eq!(latency(0.25), "250ms");
    assert_eq!(latency(2.5), "2.5s");
    assert_eq!(bytes(10.0), "10");
    assert_eq!(bytes(1536.0), "1.5Ki");
    assert_eq!(bytes(3.0 * 1024.0 * 1024.0 * 1024.0), "3.0Gi");
}
