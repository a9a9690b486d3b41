//! How records are written: JSON objects that carry the version of their format.
//!
//! A reader ignores fields that it doesn't know, and a writer keeps them ([`rewrite`]), so that nodes of two versions can
//! share a registry. A format that older nodes could not read even so gets a higher number, and they refuse it by name.

use model::manifest::FieldError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The format that this version writes, and the highest that it reads.
pub const FORMAT_VERSION: u64 = 1;

const FIELD: &str = "formatVersion";

/// Why a record can't be read. The record is left alone, and so is everything else.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Not a JSON object.
    #[error("not a JSON object")]
    Json(#[source] serde_json::Error),
    /// It doesn't say which format it has.
    #[error("no `formatVersion`")]
    NoVersion,
    /// Written by a newer heddle, in a way that this one can't read.
    #[error("format {found} is newer than {FORMAT_VERSION}, which this version of heddle reads")]
    Newer {
        /// What the record says.
        found: u64,
    },
    /// A field is missing or of the wrong type.
    #[error("wrong content")]
    Content(#[source] serde_json::Error),
    /// A value that no version writes, such as an interval of nothing.
    #[error("breaks a rule")]
    Rule(#[from] FieldError),
    /// It is about something else than its key says.
    #[error("it is about {found}, not what its key says")]
    Mismatch {
        /// What the record says that it is about.
        found: String,
    },
}

/// The bytes of a new record.
pub fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    to_bytes(to_object(record))
}

/// Reads a record.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RecordError> {
    let mut object: Map<String, Value> =
        serde_json::from_slice(bytes).map_err(RecordError::Json)?;
    match object.remove(FIELD).as_ref().and_then(Value::as_u64) {
        None => Err(RecordError::NoVersion),
        Some(found) if found > FORMAT_VERSION => Err(RecordError::Newer { found }),
        Some(_) => serde_json::from_value(Value::Object(object)).map_err(RecordError::Content),
    }
}

/// The bytes of `record` in place of `old`, with every field of `old` that this version doesn't know kept.
pub fn rewrite<T: Serialize + DeserializeOwned>(
    old: &[u8],
    record: &T,
) -> Result<Vec<u8>, RecordError> {
    let known: T = decode(old)?;
    let mut old: Map<String, Value> = serde_json::from_slice(old).map_err(RecordError::Json)?;
    old.remove(FIELD);
    let mut new = to_object(record);
    keep_unknown(&old, &to_object(&known), &mut new);
    Ok(to_bytes(new))
}

/// The same, and just `record` where `old` can't be read.
pub(crate) fn replace<T: Serialize + DeserializeOwned>(old: &[u8], record: &T) -> Vec<u8> {
    rewrite(old, record).unwrap_or_else(|_| encode(record))
}

/// Takes the format's version off a record that has been decoded.
pub(crate) fn strip_version(object: &mut Map<String, Value>) {
    object.remove(FIELD);
}

fn to_object<T: Serialize>(record: &T) -> Map<String, Value> {
    match serde_json::to_value(record) {
        Ok(Value::Object(object)) => object,
        // Records are structs of serialisable fields: there is nothing else they could become.
        other => unreachable!("a record is an object, not {other:?}"),
    }
}

fn to_bytes(mut object: Map<String, Value>) -> Vec<u8> {
    object.insert(FIELD.to_owned(), FORMAT_VERSION.into());
    Value::Object(object).to_string().into_bytes()
}

fn keep_unknown(
    old: &Map<String, Value>,
    known: &Map<String, Value>,
    new: &mut Map<String, Value>,
) {
    for (key, value) in old {
        match (known.get(key), new.get_mut(key), value) {
            (None, None, _) => {
                new.insert(key.clone(), value.clone());
            }
            (Some(Value::Object(known)), Some(Value::Object(new)), Value::Object(old)) => {
                keep_unknown(old, known, new);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Inner {
        weight: u32,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Record {
        name: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        zone: Option<String>,
        inner: Inner,
    }

    fn record() -> Record {
        Record {
            name: "web".into(),
            zone: None,
            inner: Inner { weight: 2 },
        }
    }

    #[test]
    fn a_record_reads_back() {
        assert_eq!(decode::<Record>(&encode(&record())).unwrap(), record());
    }

    #[test]
    fn what_a_newer_version_added_is_kept_when_an_older_one_rewrites() {
        let old = br#"{"formatVersion":1,"name":"web","zone":"a","inner":{"weight":1,"slowStart":"30s"},"color":"blue"}"#;
        let new: Value = serde_json::from_slice(&rewrite(old, &record()).unwrap()).unwrap();
        assert_eq!(new["color"], "blue");
        assert_eq!(new["inner"]["slowStart"], "30s");
        assert_eq!(new["inner"]["weight"], 2);
        assert_eq!(
            new.get("zone"),
            None,
            "a known field that was taken away stays away"
        );
    }

    #[test]
    fn bad_records_say_what_is_wrong() {
        assert!(matches!(
            decode::<Record>(b"nonsense"),
            Err(RecordError::Json(_))
        ));
        assert!(matches!(
            decode::<Record>(b"{}"),
            Err(RecordError::NoVersion)
        ));
        assert!(matches!(
            decode::<Record>(br#"{"formatVersion":9}"#),
            Err(RecordError::Newer { found: 9 })
        ));
        assert!(matches!(
            decode::<Record>(br#"{"formatVersion":1,"name":7}"#),
            Err(RecordError::Content(_))
        ));
    }
}
