//! YAML and JSON text with one or more documents.

use serde_saphyr::{
    DuplicateKeyPolicy, Error, Location, MessageFormatter, Options, Spanned, UserMessageFormatter,
};

use super::{Position, StrictError};
use crate::name::clipped;

/// The longest text in bytes (16 MiB): room for tens of thousands of services in one file.
pub const MAX_TEXT_BYTES: usize = 16 * 1024 * 1024;

/// Limits on what a text may unfold to. The parser's own defaults stop at 1,024 documents, which one file
/// with all services of a large installation exceeds.
const MAX_DOCUMENTS: usize = 65_536;
const MAX_NODES: usize = 2_000_000;
const MAX_EVENTS: usize = 5_000_000;
const MAX_DEPTH: usize = 64;
const MAX_ALIASES: usize = 10_000;
const MAX_REPLAYED_EVENTS: usize = 100_000;
const MAX_SCALAR_BYTES: usize = 2 * MAX_TEXT_BYTES;

/// How much of the parser's message is kept, in characters: it can repeat a key of any length.
const MAX_REASON_CHARS: usize = 300;

/// One document of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// The document's number, counted from 0 and without the empty ones.
    pub index: usize,
    /// The line on which its content starts, counted from 1, where the parser knows it.
    pub line: Option<usize>,
    /// The content.
    pub value: serde_json::Value,
}

/// Reads YAML 1.2 or JSON (which is YAML) with any number of documents; empty ones are skipped.
///
/// The schema is YAML 1.2's core schema: `on`, `no` and `yes` are strings. Numbers with leading zeros or
/// underscores are strings too, because readers disagree about their value. Duplicate keys, unknown tags
/// and numbers that are not finite are errors.
///
/// # Errors
/// [`StrictError`] with line and column for a text that is not YAML or that exceeds a limit: 16 MiB,
/// 65,536 documents, 2 million values, 64 levels, 10,000 aliases that unfold to 100,000 parser events, 32 MiB
/// of scalars with the unfolded ones.
pub fn parse_documents(text: &str) -> Result<Vec<Document>, StrictError> {
    if text.len() > MAX_TEXT_BYTES {
        let reason = format!(
            "the text has {} bytes, at most {MAX_TEXT_BYTES} are read",
            text.len()
        );
        return Err(StrictError::in_text(None, reason));
    }
    let values: Vec<Spanned<serde_json::Value>> =
        serde_saphyr::from_multiple_with_options(text, options()).map_err(refusal)?;
    let documents = values
        .into_iter()
        .enumerate()
        .map(|(index, spanned)| Document {
            index,
            line: position(spanned.defined).map(|position| position.line),
            value: spanned.value,
        });
    Ok(documents.collect())
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: MAX_DOCUMENTS,
            max_nodes: MAX_NODES,
            max_events: MAX_EVENTS,
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_aliases: MAX_ALIASES,
            max_anchors: MAX_ALIASES,
            max_recorded_anchor_events: MAX_EVENTS,
            max_total_scalar_bytes: MAX_SCALAR_BYTES,
            max_recorded_anchor_bytes: MAX_SCALAR_BYTES,
            max_merge_keys: MAX_ALIASES,
            // Many uses of one anchor are what anchors are for; the limits above bound what they cost.
            enforce_alias_anchor_ratio: false,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_REPLAYED_EVENTS,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        reject_unsupported_tags: true,
        with_snippet: false,
    }
}

/// `None` for the parser's unknown location, which is line 0.
fn position(location: Location) -> Option<Position> {
    let line = usize::try_from(location.line())
        .ok()
        .filter(|line| *line > 0)?;
    Some(Position {
        line,
        column: usize::try_from(location.column()).ok()?,
    })
}

fn refusal(error: serde_saphyr::Error) -> StrictError {
    let position = error.location().and_then(position);
    let mut cause = &error;
    while let Error::AliasError { error, .. } | Error::WithSnippet { error, .. } = cause {
        cause = error;
    }
    let reason = match cause {
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => format!(
            "the text holds or unfolds to too much: at most {MAX_DOCUMENTS} documents, {MAX_NODES} values, \
             {MAX_DEPTH} levels, {MAX_ALIASES} aliases and {MAX_SCALAR_BYTES} bytes of scalars are read"
        ),
        // The developer's wording of a parse error tells how to configure the parser.
        _ => clipped(
            &UserMessageFormatter.format_message(cause),
            MAX_REASON_CHARS,
        ),
    };
    StrictError::in_text(position, reason)
}

/// A value as YAML, for people and for `heddle apply`.
///
/// # Errors
/// For values that YAML has no form for, such as maps whose keys are maps.
pub fn to_yaml<T: serde::Serialize>(value: &T) -> Result<String, serde_saphyr::ser::Error> {
    serde_saphyr::to_string(value)
}
