use proptest::prelude::*;

use super::*;

#[test]
fn dns_labels_are_names() {
    for text in ["a", "0", "web", "web-1", "1-a", "a--b", &"x".repeat(63)] {
        assert_eq!(Name::new(text).unwrap().as_str(), text);
    }
}

#[test]
fn an_error_names_the_value_and_the_rule() {
    let cases = [
        ("", "`` is not a valid name: it is empty"),
        (
            "my_web",
            "`my_web` is not a valid name: '_' at character 3 is not allowed (only lower-case letters, digits and '-')",
        ),
        (
            "Web",
            "`Web` is not a valid name: 'W' at character 1 is not allowed (only lower-case letters, digits and '-')",
        ),
        (
            "größe",
            "`größe` is not a valid name: 'ö' at character 3 is not allowed (only lower-case letters, digits and '-')",
        ),
        (
            "-a",
            "`-a` is not a valid name: it starts with '-' instead of a letter or digit",
        ),
        (
            "a-",
            "`a-` is not a valid name: it ends with '-' instead of a letter or digit",
        ),
        (
            "-",
            "`-` is not a valid name: it starts with '-' instead of a letter or digit",
        ),
    ];
    for (text, message) in cases {
        assert_eq!(Name::new(text).unwrap_err().to_string(), message);
    }
    let long = Name::new(&"x".repeat(64)).unwrap_err().to_string();
    assert!(
        long.ends_with("it has 64 bytes, at most 63 are allowed"),
        "{long}"
    );
}

#[test]
fn a_message_repeats_only_the_start_of_a_long_value_on_one_line() {
    let message = Name::new(&"x\n".repeat(1_000_000)).unwrap_err().to_string();
    assert!(message.len() < 300 && !message.contains('\n'), "{message}");
}

#[test]
fn foreign_names_are_mended() {
    let cases = [
        ("Shop_Front.1", Some("shop-front-1")),
        ("/web", Some("web")),
        ("__a__", Some("a")),
        ("a b", Some("a-b")),
        ("größe", Some("gr--e")),
        ("", None),
        ("___", None),
    ];
    for (text, name) in cases {
        assert_eq!(
            Name::lossy(text).as_ref().map(Name::as_str),
            name,
            "{text:?}"
        );
    }
    let cut = format!("__{}_b", "a".repeat(62));
    assert_eq!(Name::lossy(&cut).unwrap().as_str(), "a".repeat(62));
}

#[test]
fn a_service_key_is_written_with_a_slash() {
    let key: ServiceKey = "shop/web".parse().unwrap();
    assert_eq!(
        key,
        ServiceKey::new(Name::new("shop").unwrap(), Name::new("web").unwrap())
    );
    assert_eq!(key.to_string(), "shop/web");
    assert_eq!(format!("{key:>10}|{key:<10}|"), "  shop/web|shop/web  |");
    assert_eq!(serde_json::to_string(&key).unwrap(), "\"shop/web\"");
    assert_eq!(
        serde_json::from_str::<ServiceKey>("\"shop/web\"").unwrap(),
        key
    );
    for bad in ["", "web", "/web", "shop/", "a/b/c", "Shop/web"] {
        assert!(bad.parse::<ServiceKey>().is_err(), "{bad:?}");
    }
}

#[test]
fn names_are_strings_in_json_also_as_keys() {
    let map: std::collections::BTreeMap<Name, u8> = serde_json::from_str(r#"{"web":1}"#).unwrap();
    assert_eq!(map.get("web"), Some(&1));
    assert!(serde_json::from_str::<Name>("\"Web\"").is_err());
    assert!(serde_json::from_str::<Name>("1").is_err());
}

/// The rule written down a second time, in another way.
fn is_dns_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let word = |b: &u8| matches!(b, b'a'..=b'z' | b'0'..=b'9');
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|b| word(b) || *b == b'-')
        && bytes.first().is_some_and(word)
        && bytes.last().is_some_and(word)
}

proptest! {
    #[test]
    fn exactly_the_dns_labels_are_names(text in "[-a-zA-Z0-9_.]{0,5}|[-a-z]{60,66}|.{0,4}") {
        prop_assert_eq!(Name::new(&text).is_ok(), is_dns_label(&text));
    }

    #[test]
    fn mending_gives_a_valid_name_and_leaves_valid_ones_alone(text in ".{0,80}") {
        if let Some(name) = Name::lossy(&text) {
            prop_assert!(is_dns_label(name.as_str()));
            prop_assert_eq!(Name::lossy(name.as_str()), Some(name));
        } else {
            prop_assert!(!text.chars().any(|c| c.is_ascii_alphanumeric()));
        }
    }
}
