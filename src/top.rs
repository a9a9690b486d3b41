//! `heddle top`: what flows through a node, live: rate, errors, latency and connections by service and endpoint.
//!
//! # Layout
//! - this file: the loop, and what is printed where there is no terminal
//! - `data`: what is asked of the node, and the rows that are made of it
//! - `screen`: how it is drawn
//! - `keys`: what keys do

pub mod data;
mod keys;
mod screen;

use std::io::IsTerminal as _;
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyEventKind};
use tokio::sync::mpsc;

use crate::cli::Failure;
use crate::cli::client::Client;
use crate::cli::get::out;
use data::Source;
use keys::Ui;

/// How often the node is asked.
const EVERY: Duration = Duration::from_secs(1);

/// What `heddle top` takes on its command line.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Only services of this namespace
    #[arg(short, long, value_name = "NS")]
    namespace: Option<String>,
    /// What comes first
    #[arg(long, value_enum, default_value = "rate")]
    sort: keys::Sort,
    /// Print one table and end, as where standard output is no terminal
    #[arg(long)]
    once: bool,
}

/// Shows until it is told to end; without a terminal prints one table.
pub async fn run(client: Client, options: &Options) -> Result<(), Failure> {
    let mut source = Source::new(client, options.namespace.clone());
    let mut ui = Ui::new(options.sort);
    if options.once || !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        source.look().await?;
        tokio::time::sleep(EVERY).await;
        let mut view = source.look().await?;
        ui.sort.apply(&mut view.services);
        return out(&data::table(&view));
    }
    // Before the screen is taken over: an error of the first look is better read without it.
    source.look().await?;
    let mut terminal = ratatui::try_init()
        .map_err(|e| Failure::Failed(format!("top: the terminal can't be used: {e}")))?;
    let result = show(&mut terminal, &mut source, &mut ui).await;
    ratatui::restore();
    result
}

async fn show(
    terminal: &mut ratatui::DefaultTerminal,
    source: &mut Source,
    ui: &mut Ui,
) -> Result<(), Failure> {
    let (send, mut events) = mpsc::channel(16);
    // Reading the terminal blocks; the thread ends with the process.
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if send.blocking_send(event).is_err() {
                return;
            }
        }
    });
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick(), if !ui.paused => match source.look().await {
                Ok(view) => ui.take(view),
                // The node may come back: what was seen last stays, and why it is old is said.
                Err(failure) => ui.trouble = Some(failure.to_string()),
            },
            event = events.recv() => match event {
                None => return Ok(()),
                Some(Event::Key(key)) if key.kind == KeyEventKind::Press => {
                    if ui.press(key) {
                        return Ok(());
                    }
                }
                Some(_) => {}
            },
        }
        terminal
            .draw(|frame| screen::draw(frame, ui))
            .map_err(|e| Failure::Failed(format!("top: the terminal can't be drawn: {e}")))?;
    }
}

#[cfg(test)]
mod tests;
