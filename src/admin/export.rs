//! All resources out as documents, and in again.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use model::{Name, strict};
use registry::follow::{BadRecord, chain};
use registry::import::{ImportError, ImportOptions, Imported};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{ApiError, Filtered, Shared};

/// What `/v1/export` answers.
#[derive(Debug, Serialize, Deserialize)]
pub struct Export {
    /// One for each resource, in the order in which they are imported.
    pub items: Vec<Value>,
    /// Records that can't be read and so are not among the items.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<Unreadable>,
}

/// A record that can't be read.
#[derive(Debug, Serialize, Deserialize)]
pub struct Unreadable {
    /// Its key in the registry.
    pub key: String,
    /// Why.
    pub reason: String,
}

impl From<BadRecord> for Unreadable {
    fn from(bad: BadRecord) -> Self {
        Unreadable {
            key: bad.key,
            reason: bad.reason,
        }
    }
}

impl From<ImportError> for ApiError {
    fn from(error: ImportError) -> Self {
        let text = chain(&error);
        let (status, details) = match error {
            ImportError::Documents { errors } => (StatusCode::BAD_REQUEST, errors),
            ImportError::Conflicts { conflicts } => (StatusCode::CONFLICT, conflicts),
            ImportError::Changed { .. } => (StatusCode::CONFLICT, Vec::new()),
            ImportError::Store(_) | ImportError::Interrupted { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, Vec::new())
            }
        };
        ApiError {
            details,
            ..ApiError::new(status, text)
        }
    }
}

pub(super) async fn export(
    State(context): Shared,
    Query(filter): Filtered,
) -> Result<Json<Export>, ApiError> {
    let namespace = filter
        .namespace
        .map(|text| Name::new(&text))
        .transpose()
        .map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, error.to_string()))?;
    let exported = context.registry.export(namespace.as_ref()).await?;
    Ok(Json(Export {
        items: exported.documents,
        unreadable: exported.unreadable.into_iter().map(Into::into).collect(),
    }))
}

/// What `import` understands.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ImportQuery {
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    replace: bool,
}

pub(super) async fn import(
    State(context): Shared,
    Query(query): Query<ImportQuery>,
    body: Bytes,
) -> Result<Json<Imported>, ApiError> {
    let bad = |what: String| ApiError::new(StatusCode::BAD_REQUEST, what);
    let text = std::str::from_utf8(&body)
        .map_err(|error| bad(format!("the body is not UTF-8: {error}")))?;
    let documents = strict::parse_documents(text).map_err(|error| bad(error.to_string()))?;
    let documents: Vec<Value> = documents
        .into_iter()
        .flat_map(|document| unlisted(document.value))
        .collect();
    if documents.is_empty() {
        return Err(bad("no documents: nothing to import".to_owned()));
    }
    let options = ImportOptions {
        dry_run: query.dry_run,
        replace: query.replace,
    };
    Ok(Json(context.registry.import(documents, options).await?))
}

/// The items of a `kind: List`, or the document itself.
fn unlisted(mut document: Value) -> Vec<Value> {
    let list = document.get("kind").and_then(Value::as_str) == Some("List");
    match document.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) if list => items,
        Some(items) => {
            document["items"] = items;
            vec![document]
        }
        None => vec![document],
    }
}
