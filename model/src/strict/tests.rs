use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};

use super::*;
use crate::name::Name;
use crate::selector::Selector;
use crate::units::Span;

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    selector: Option<Selector>,
    ports: Vec<Port>,
    #[serde(default)]
    health: Health,
    #[serde(default)]
    weights: BTreeMap<u16, Option<u8>>,
    #[serde(default)]
    drain_timeout: Option<Span>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
struct Port {
    name: Option<Name>,
    port: u16,
    #[serde(default)]
    protocol: Protocol,
}

#[derive(Debug, Deserialize, PartialEq, Default)]
#[serde(rename_all = "lowercase")]
enum Protocol {
    #[default]
    Tcp,
    Http,
}

#[derive(Debug, Deserialize, PartialEq, Default)]
#[serde(rename_all = "lowercase")]
enum Health {
    #[default]
    None,
    Tcp {},
    Http {
        path: String,
    },
    Exec(Vec<String>),
    Pair(u8, u8),
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(untagged)]
enum OneOrMany {
    One(Name),
    Many(Vec<Name>),
}

#[derive(Debug, Deserialize, PartialEq)]
struct Nothing {}

fn spec(value: Value) -> Result<Spec, StrictError> {
    from_value(value)
}

#[track_caller]
fn refused<T: DeserializeOwned + fmt::Debug>(value: Value) -> String {
    from_value::<T>(value).unwrap_err().to_string()
}

#[test]
fn a_whole_value_is_read() {
    let read = spec(json!({
        "selector": {"matchLabels": {"app": "web"}},
        "ports": [{"name": "http", "port": 80, "protocol": "http"}, {"port": 443, "name": null}],
        "health": {"http": {"path": "/healthz"}},
        "weights": {"80": 1, "443": null},
        "drainTimeout": "30s",
    }))
    .unwrap();
    let expected = Spec {
        selector: Some(Selector::parse("app=web").unwrap()),
        ports: vec![
            Port {
                name: Some(Name::new("http").unwrap()),
                port: 80,
                protocol: Protocol::Http,
            },
            Port {
                name: None,
                port: 443,
                protocol: Protocol::Tcp,
            },
        ],
        health: Health::Http {
            path: "/healthz".to_owned(),
        },
        weights: BTreeMap::from([(80, Some(1)), (443, None)]),
        drain_timeout: Some(Span(std::time::Duration::from_secs(30))),
    };
    assert_eq!(read, expected);
}

#[test]
fn an_unknown_field_is_refused_with_its_path_and_the_nearest_one() {
    let cases = [
        (
            json!({"portz": []}),
            "`portz`: unknown field, did you mean `ports`?",
        ),
        (
            json!({"ports": [{"port": 1}, {"prot": 1}]}),
            "`ports[1].prot`: unknown field, did you mean `port`?",
        ),
        (
            json!({"ports": [], "drain_timeout": "1s"}),
            "`drain_timeout`: unknown field, did you mean `drainTimeout`?",
        ),
        (
            json!({"ports": [], "replicas": 3}),
            "`replicas`: unknown field, expected `selector`, `ports`, `health`, `weights` or `drainTimeout`",
        ),
        (
            json!({"ports": [], "selector": {"matchLabel": {}}}),
            "`selector.matchLabel`: unknown field, did you mean `matchLabels`?",
        ),
        (
            json!({"ports": [], "health": {"http": {"path": "/", "hosts": "x"}}}),
            "`health.http.hosts`: unknown field, expected `path`",
        ),
        (
            json!({"ports": [], "health": {"htp": {}}}),
            "`health.htp`: unknown field, did you mean `http`?",
        ),
        (
            json!({"ports": [], "health": {"tcp": {"x": 1}}}),
            "`health.tcp.x`: unknown field, there are none here",
        ),
        (
            json!({"ports": [], "a.b c": 1}),
            "`[\"a.b c\"]`: unknown field, expected `selector`, `ports`, `health`, `weights` or `drainTimeout`",
        ),
    ];
    for (value, message) in cases {
        assert_eq!(refused::<Spec>(value), message);
    }
}

#[test]
fn every_other_error_has_its_path_too() {
    let cases = [
        (json!({}), "missing field `ports`"),
        (
            json!({"ports": [{"name": "a"}]}),
            "`ports[0]`: missing field `port`",
        ),
        (
            json!({"ports": [{"port": "x"}]}),
            "`ports[0].port`: invalid type: string \"x\", expected u16",
        ),
        (
            json!({"ports": [{"port": 70000}]}),
            "`ports[0].port`: invalid value: number 70000, expected u16",
        ),
        (
            json!({"ports": [{"port": -1}]}),
            "`ports[0].port`: invalid value: number -1, expected u16",
        ),
        (
            json!({"ports": [{"port": 1.5}]}),
            "`ports[0].port`: invalid type: number 1.5, expected u16",
        ),
        (
            json!({"ports": null}),
            "`ports`: invalid type: null, expected a sequence",
        ),
        (
            json!({"ports": [7]}),
            "`ports[0]`: invalid type: number 7, expected a map with `name`, `port` or `protocol`",
        ),
        (
            json!({"ports": [{"port": 1, "protocol": "htpp"}]}),
            "`ports[0].protocol`: unknown value `htpp`, did you mean `http`?",
        ),
        (
            json!({"ports": [{"port": 1, "protocol": "sctp"}]}),
            "`ports[0].protocol`: unknown value `sctp`, expected `tcp` or `http`",
        ),
        (
            json!({"ports": [{"port": 1, "protocol": 6}]}),
            "`ports[0].protocol`: invalid type: number 6, expected `tcp` or `http`",
        ),
        (
            json!({"ports": [{"port": 1, "name": "My"}]}),
            "`ports[0].name`: `My` is not a valid name: 'M' at character 1 is not allowed (only lower-case letters, digits and '-')",
        ),
        (
            json!({"ports": [], "selector": "x=a,,"}),
            "`selector`: at character 5: found `,`, expected a key or `!`",
        ),
        (
            json!({"ports": [], "selector": {"matchExpressions": [{"key": "a", "operator": "in"}]}}),
            "`selector.matchExpressions[0].operator`: unknown value `in`, did you mean `In`?",
        ),
        (
            json!({"ports": [], "selector": {"matchLabels": {"heddle.io/x": true}}}),
            "`selector.matchLabels[\"heddle.io/x\"]`: invalid type: boolean true, expected a string",
        ),
        (
            json!({"ports": [], "selector": 7}),
            "`selector`: invalid type: number 7, expected a selector (a string such as `app=web,!canary`, or a map of `matchLabels` and `matchExpressions`)",
        ),
        (
            json!({"ports": [], "weights": {"x": 1}}),
            "`weights`: invalid type: string \"x\", expected u16",
        ),
        (
            json!({"ports": [], "weights": {"80": 256}}),
            "`weights.80`: invalid value: number 256, expected u8",
        ),
        (
            json!({"ports": [], "drainTimeout": 10}),
            "`drainTimeout`: duration `10` has no unit: write \"10s\" for seconds or \"10ms\" for milliseconds",
        ),
        (
            json!({"ports": [], "health": "http"}),
            "`health`: `http` needs a value: write `http: …` instead of a string",
        ),
        (
            json!({"ports": [], "health": {"http": null}}),
            "`health.http`: invalid type: null, expected a map with `path`",
        ),
        (
            json!({"ports": [], "health": {"tcp": null}}),
            "`health.tcp`: invalid type: null, expected an empty map: {}",
        ),
        (
            json!({"ports": [], "health": {"http": {"path": "/"}, "tcp": {}}}),
            "`health`: expected exactly one of `none`, `tcp`, `http`, `exec` or `pair`, found 2",
        ),
        (
            json!({"ports": [], "health": {}}),
            "`health`: expected exactly one of `none`, `tcp`, `http`, `exec` or `pair`, found 0",
        ),
        (
            json!({"ports": [], "health": {"none": 1}}),
            "`health.none`: invalid type: number 1, expected nothing",
        ),
        (
            json!({"ports": [], "health": {"exec": ["a", 1]}}),
            "`health.exec[1]`: invalid type: number 1, expected a string",
        ),
        (
            json!({"ports": [], "health": {"pair": [1, 2, 3]}}),
            "`health.pair`: expected 2 values, found 3",
        ),
        (
            json!([]),
            "invalid type: list, expected a map with `selector`, `ports`, `health`, `weights` or `drainTimeout`",
        ),
    ];
    for (value, message) in cases {
        assert_eq!(refused::<Spec>(value.clone()), message, "{value}");
    }
}

#[test]
fn enums_are_read_in_every_form() {
    let health = |value: Value| from_value::<Health>(value).unwrap();
    assert_eq!(health(json!("none")), Health::None);
    assert_eq!(health(json!({"none": null})), Health::None);
    assert_eq!(health(json!({"none": {}})), Health::None);
    assert_eq!(health(json!({"tcp": {}})), Health::Tcp {});
    assert_eq!(
        health(json!({"exec": ["a"]})),
        Health::Exec(vec!["a".to_owned()])
    );
    assert_eq!(health(json!({"pair": [1, 2]})), Health::Pair(1, 2));
    assert_eq!(
        from_value::<OneOrMany>(json!("a")).unwrap(),
        OneOrMany::One(Name::new("a").unwrap())
    );
    let many = from_value::<OneOrMany>(json!(["a", "b"])).unwrap();
    assert!(matches!(many, OneOrMany::Many(names) if names.len() == 2));
    assert!(refused::<OneOrMany>(json!(1)).contains("did not match any variant"));
}

#[test]
fn a_type_with_a_visitor_of_its_own_ignores_nothing_either() {
    #[derive(Debug, PartialEq)]
    struct Either(Option<Port>);

    impl<'de> Deserialize<'de> for Either {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Visitor;
            impl<'de> serde::de::Visitor<'de> for Visitor {
                type Value = Either;
                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("`none` or a port")
                }
                fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<Either, E> {
                    Ok(Either(None))
                }
                fn visit_map<A: serde::de::MapAccess<'de>>(
                    self,
                    map: A,
                ) -> Result<Either, A::Error> {
                    let map = serde::de::value::MapAccessDeserializer::new(map);
                    Port::deserialize(map).map(Some).map(Either)
                }
            }
            deserializer.deserialize_any(Visitor)
        }
    }

    assert_eq!(from_value::<Either>(json!("none")).unwrap(), Either(None));
    assert!(
        from_value::<Either>(json!({"port": 1}))
            .unwrap()
            .0
            .is_some()
    );
    assert_eq!(
        refused::<Either>(json!({"port": 1, "x": [2]})),
        "`x`: unknown field"
    );
    assert_eq!(
        refused::<Either>(json!(7)),
        "invalid type: number 7, expected `none` or a port"
    );
}

#[test]
fn keys_are_read_as_what_the_map_asks_for() {
    let read: BTreeMap<bool, ()> = from_value(json!({"true": null})).unwrap();
    assert_eq!(read, BTreeMap::from([(true, ())]));
    let read: BTreeMap<Name, i64> = from_value(json!({"a": -1})).unwrap();
    assert_eq!(read.get("a"), Some(&-1));
    #[derive(Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
    enum Key {
        A,
        B,
    }
    let read: BTreeMap<Key, char> = from_value(json!({"A": "x", "B": "y"})).unwrap();
    assert_eq!(read, BTreeMap::from([(Key::A, 'x'), (Key::B, 'y')]));
    assert_eq!(
        refused::<BTreeMap<Key, char>>(json!({"C": "x"})),
        "unknown value `C`, expected `A` or `B`"
    );
}

#[test]
fn an_empty_map_is_not_null() {
    assert_eq!(from_value::<Nothing>(json!({})).unwrap(), Nothing {});
    assert_eq!(
        refused::<Nothing>(json!(null)),
        "invalid type: null, expected an empty map: {}"
    );
}

#[test]
fn an_error_repeats_only_the_start_of_a_long_value() {
    let long = "x\n".repeat(1_000_000);
    for value in [
        json!({"ports": long}),
        json!({"ports": [{"port": 1, "protocol": long}]}),
        json!({ long.as_str(): 1 }),
    ] {
        let message = refused::<Spec>(value);
        assert!(message.len() < 400 && !message.contains('\n'), "{message}");
    }
}

#[test]
fn a_path_can_be_put_under_another() {
    let path = |prefix: &str, path: &str| StrictError::new(path, "x").within(prefix).path;
    assert_eq!(path("spec", "ports"), "spec.ports");
    assert_eq!(path("spec", "[0].a"), "spec[0].a");
    assert_eq!(path("", "ports"), "ports");
    assert_eq!(path("spec", ""), "spec");
}

#[test]
fn the_nearest_word_is_a_likely_one() {
    let known = ["port", "targetPort", "nodePort", "protocol", "name"];
    let cases = [
        ("prot", Some("port")),
        ("Port", Some("port")),
        ("nodeport", Some("nodePort")),
        ("node-port", Some("nodePort")),
        ("target_prt", Some("targetPort")),
        ("protcol", Some("protocol")),
        ("names", Some("name")),
        ("x", None),
        ("", None),
        ("replicas", None),
    ];
    for (word, near) in cases {
        assert_eq!(nearest(word, known), near, "{word:?}");
    }
    assert_eq!(nearest(&"port".repeat(100_000), known), None);
}

#[test]
fn a_text_has_several_documents_and_each_knows_its_line() {
    let text = "# services\n---\nkind: A\n---\n---\n# nothing here\n---\n\nkind: B\nspec: {x: [1, 2.5, null]}\n...\n---\n{\"kind\": \"C\"}\n";
    let documents = parse_documents(text).unwrap();
    let seen: Vec<_> = documents
        .iter()
        .map(|d| (d.index, d.line, d.value.clone()))
        .collect();
    assert_eq!(
        seen,
        [
            (0, Some(3), json!({"kind": "A"})),
            (
                1,
                Some(9),
                json!({"kind": "B", "spec": {"x": [1, 2.5, null]}})
            ),
            (2, Some(13), json!({"kind": "C"})),
        ]
    );
    for empty in ["", "\n\n", "# only a comment\n", "---\n---\n", "\u{feff}"] {
        assert_eq!(parse_documents(empty).unwrap(), [], "{empty:?}");
    }
}

#[test]
fn the_schema_is_that_of_yaml_1_2() {
    let text = "{a: on, b: no, c: yes, d: true, e: 'true', f: 012, g: 1_000, h: 0x10, i: 12:30, j: ~, k: 1e3, l: '8080', m: 8080, n: -3}";
    let value = &parse_documents(text).unwrap()[0].value;
    assert_eq!(
        *value,
        json!({"a": "on", "b": "no", "c": "yes", "d": true, "e": "true", "f": "012", "g": "1_000",
            "h": 16, "i": "12:30", "j": null, "k": 1000.0, "l": "8080", "m": 8080, "n": -3})
    );
}

#[test]
fn json_is_read_as_it_is() {
    let text = "{\n\t\"a\": \"\\ud83d\\ude00 \\u00e4 \\/ \\n\",\n\t\"b\": [true, null, -1.5e-3],\n\t\"c\":{}\n}";
    let expected: Value = serde_json::from_str(text).unwrap();
    assert_eq!(parse_documents(text).unwrap()[0].value, expected);
}

#[test]
fn anchors_and_merge_keys_work() {
    let text = "base: &base {x: 1, y: 2}\nother:\n  <<: *base\n  y: 3\nlist: [*base]\n";
    let value = &parse_documents(text).unwrap()[0].value;
    assert_eq!(value["other"], json!({"x": 1, "y": 3}));
    assert_eq!(value["list"], json!([{"x": 1, "y": 2}]));
    let often = format!("one: &one 1\nall: [{}]\n", vec!["*one"; 500].join(", "));
    assert_eq!(
        parse_documents(&often).unwrap()[0].value["all"]
            .as_array()
            .map(Vec::len),
        Some(500)
    );
}

#[test]
fn a_text_that_is_not_yaml_is_refused_with_line_and_column() {
    let cases = [
        ("a: 1\nb: [1, 2\nc: 3\n", 2..=4),
        ("a: 1\n  b: 2\n", 2..=2),
        ("a: 1\nb: 2\na: 3\n", 3..=3),
        ("a: {b: 1, b: 2}\n", 1..=1),
        ("{\"a\": 1,\n \"a\": 2}\n", 2..=2),
        ("a: *nobody\n", 1..=1),
        ("a: !include secret\n", 1..=1),
        ("ok: 1\n---\nbad: \"open\n", 3..=4),
        ("a: .nan\n", 1..=1),
        ("a: 1e999\n", 1..=1),
    ];
    for (text, lines) in cases {
        let error = parse_documents(text).expect_err(text);
        let position = error
            .position
            .unwrap_or_else(|| panic!("{text:?}: {error}"));
        assert!(
            lines.contains(&position.line) && position.column > 0,
            "{text:?}: {error}"
        );
        let message = error.to_string();
        assert!(
            !message.contains('\n') && message.matches("line ").count() == 1,
            "{message}"
        );
    }
}

#[test]
fn a_text_cannot_unfold_without_bound() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..9 {
        let aliases = vec![format!("*a{}", n - 1); 10].join(", ");
        bomb.push_str(&format!("a{n}: &a{n} [{aliases}]\n"));
    }
    assert!(parse_documents(&bomb).is_err());
    // Few nodes, but a long text behind each alias: 1 GiB if it were unfolded.
    let aliases = vec!["*long"; 1_000].join(", ");
    let long = format!(
        "long: &long \"{}\"\nall: [{aliases}]\n",
        "x\\n".repeat(1 << 19)
    );
    for long in [long.replace("\\n", "y"), long] {
        let refused = parse_documents(&long).unwrap_err();
        assert!(
            refused
                .reason
                .starts_with("the text holds or unfolds to too much"),
            "{refused}"
        );
    }
    for deep in [
        "[".repeat(100_000),
        "- ".repeat(100_000),
        "{a: ".repeat(100_000),
        "? ".repeat(100_000),
    ] {
        assert!(parse_documents(&deep).is_err());
    }
    let key = "k".repeat(1_000);
    let repeated = parse_documents(&format!("{key}: 1\n{key}: 2\n"))
        .unwrap_err()
        .to_string();
    assert!(
        repeated.starts_with("line 2, column 1: ") && repeated.len() < 400,
        "{repeated}"
    );
    let too_long = parse_documents(&" ".repeat(MAX_TEXT_BYTES + 1)).unwrap_err();
    assert_eq!(
        too_long.to_string(),
        "the text has 16777217 bytes, at most 16777216 are read"
    );
}

#[test]
fn ten_thousand_services_fit_into_one_text() {
    let service = "---\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec:\n  selector: app=web\n  ports:\n    - {name: http, port: 80, targetPort: 8080, protocol: http}\n";
    assert_eq!(
        parse_documents(&service.repeat(10_000)).unwrap().len(),
        10_000
    );
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,8}|ports|port|tcp|http".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        let key =
            "\\PC{0,6}|ports|port|name|protocol|health|http|path|selector|matchLabels|weights|80";
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::vec((key, inner), 0..6)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn an_untyped_value_is_read_as_itself(value in any_json()) {
        prop_assert_eq!(from_value::<Value>(value.clone()).unwrap(), value);
    }

    #[test]
    fn what_is_accepted_means_what_serde_json_reads(value in any_json()) {
        if let Ok(strict) = spec(value.clone()) {
            prop_assert_eq!(serde_json::from_value::<Spec>(value).unwrap(), strict);
        }
    }

    #[test]
    fn json_text_is_read_as_the_same_value(value in any_json()) {
        let text = value.to_string();
        let documents = parse_documents(&text).unwrap();
        if value.is_null() {
            prop_assert!(documents.is_empty());
        } else {
            prop_assert_eq!(&documents[0].value, &value);
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "[-a:\\[\\]{},&*!|>'\"%@`#?~0<\n \t]{0,40}|\\PC{0,40}") {
        let _ = parse_documents(&text);
    }
}
