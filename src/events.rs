//! What changed and why, for people: derived from the registry's changes, kept in memory and on disk within bounds.
//!
//! # Layout
//! - `derive`: events out of the catalog's changes, pure
//! - `burst`: how many may be told at once, pure
//! - `history`: the newest events, with their ids, and who watches them
//! - `file`: the same on disk
//! - `task`: the one task that follows the changes, the agent and the registry's status
//! - `docker`: that Docker was lost and came back
//! - `words`: pieces of the sentences

pub mod burst;
pub mod derive;
pub mod docker;
pub mod file;
pub mod history;
pub mod task;
mod words;

pub use history::{Filter, History};
