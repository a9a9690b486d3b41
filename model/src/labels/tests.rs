use proptest::prelude::*;

use super::*;

#[test]
fn keys_have_an_optional_prefix() {
    let longest = format!("{}/{}", "a".repeat(253), "b".repeat(63));
    for key in [
        "app",
        "App_1.x",
        "1",
        "heddle.io/tier",
        "0.1.2.domain/99",
        "in",
        longest.as_str(),
    ] {
        assert_eq!(check_key(key), Ok(()), "{key:?}");
    }
}

#[test]
fn a_bad_key_is_explained() {
    let cases = [
        ("", "label key `` is not valid: it is empty"),
        ("a/", "label key `` is not valid: it is empty"),
        ("/a", "prefix of the label key `` is not valid: it is empty"),
        ("a/b/c", "label key `a/b/c` has more than one '/'"),
        (
            "-a",
            "label key `-a` is not valid: it starts with '-' instead of a letter or digit",
        ),
        (
            "a.",
            "label key `a.` is not valid: it ends with '.' instead of a letter or digit",
        ),
        (
            "a~b",
            "label key `a~b` is not valid: '~' at character 2 is not allowed (only letters, digits, '-', '_' and '.')",
        ),
        (
            "ab.cD/x",
            "prefix of the label key `ab.cD` is not valid: 'D' at character 5 is not allowed (only lower-case letters, digits and '-')",
        ),
        (
            "a..b/x",
            "prefix of the label key `a..b` is not valid: '.' at character 3 is not allowed (only single dots between lower-case letters, digits and '-')",
        ),
    ];
    for (key, message) in cases {
        assert_eq!(check_key(key).unwrap_err().to_string(), message);
    }
    assert!(check_key(&"a".repeat(64)).is_err());
    assert!(check_key(&format!("{}/b", "a".repeat(254))).is_err());
    for key in [".a/x", "a./x", "a.-b/x", "a-.b/x", "./x"] {
        assert!(check_key(key).is_err(), "{key:?}");
    }
}

#[test]
fn values_may_be_empty_and_have_at_most_63_bytes() {
    for value in ["", "a", "A_b-c.9", &"v".repeat(63)] {
        assert_eq!(check_value(value), Ok(()), "{value:?}");
    }
    for value in ["_a", "a-", ".", "a/b", "a b", "ä", &"v".repeat(64)] {
        assert!(check_value(value).is_err(), "{value:?}");
    }
}

#[test]
fn metadata_is_checked_as_a_whole() {
    let labels = |key: &str, value: &str| Labels::from([(key.to_owned(), value.to_owned())]);
    assert_eq!(check_labels(&labels("app", "web")), Ok(()));
    assert!(check_labels(&labels("app", "a b")).is_err());
    assert!(check_labels(&labels("a b", "web")).is_err());
}

proptest! {
    #[test]
    fn no_text_makes_a_check_panic(text in any::<String>()) {
        let _ = check_key(&text);
        let _ = check_value(&text);
    }

    #[test]
    fn what_the_grammar_gives_is_accepted(
        key in "([a-z0-9]([-a-z0-9]{0,9}[a-z0-9])?(\\.[a-z0-9]{1,9}){0,3}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?",
        value in "([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?",
    ) {
        prop_assert_eq!(check_key(&key), Ok(()));
        prop_assert_eq!(check_value(&value), Ok(()));
    }
}
