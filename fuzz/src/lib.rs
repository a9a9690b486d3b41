//! What the fuzz targets do with their bytes.
//!
//! libFuzzer runs these functions with
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run selector fuzz/corpus/selector fuzz/seeds/selector`
//! (or `manifest`, `units`). What `http_request`, `http_response` and `http_chunks` do stands in the crate `proxy`
//! (`proxy/src/http/message/check.rs`), and what `dns_query`, `dns_upstream` and `dns_text` do in `dns`
//! (`dns/src/check.rs`). The tests of the crates run the same functions on the seeds and on random bytes, so that they
//! stay true in every test run.

use model::labels::Labels;
use model::selector::Selector;
use model::units::{Size, Span, StatusRanges};

/// The first line is a selector, the others are labels (`key=value`). What is accepted must read back as
/// the same selector, in the string and in the structured form, and match the same labels.
pub fn selector(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
    let Ok(selector) = Selector::parse(first) else {
        return;
    };
    let labels: Labels = rest
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let matched = selector.matches(&labels);
    assert!(
        !matched || !selector.is_empty(),
        "an empty selector selected something"
    );
    for (key, value) in selector.required_pairs() {
        assert!(!matched || labels.get(key).is_some_and(|found| found == value));
    }
    let canonical = selector.to_string();
    let again = Selector::parse(&canonical).expect("the canonical form is a selector");
    assert_eq!(again, selector);
    assert_eq!(again.to_string(), canonical);
    assert_eq!(again.matches(&labels), matched);
    if let Some(structured) = selector.to_structured() {
        let again = Selector::try_from(structured).expect("the structured form is a selector");
        assert_eq!(again, selector);
    }
}

/// A text of documents. Whatever it is, it is read or refused with an error that says something.
pub fn manifest(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match model::strict::parse_documents(&text) {
        Ok(documents) => {
            for document in documents {
                let read = model::strict::from_value::<model::ServiceSpec>(document.value);
                assert!(read.is_ok() || read.is_err_and(|error| !error.reason.is_empty()));
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    match model::manifest::parse(&text) {
        Ok(_) => {}
        Err(errors) => assert!(!errors.is_empty(), "refused without a reason"),
    }
}

/// A quantity. What is accepted must read back as the same.
pub fn units(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(span) = text.parse::<Span>() {
        assert_eq!(span.to_string().parse(), Ok(span));
    }
    if let Ok(size) = text.parse::<Size>() {
        assert_eq!(size.to_string().parse(), Ok(size));
    }
    if let Ok(ranges) = text.parse::<StatusRanges>() {
        assert_eq!(ranges.to_string().parse(), Ok(ranges));
    }
}
