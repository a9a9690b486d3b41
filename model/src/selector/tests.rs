use proptest::prelude::*;

use super::*;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect()
}

fn selector(text: &str) -> Selector {
    Selector::parse(text).unwrap_or_else(|error| panic!("{text:?}: {}", chain(&error)))
}

#[track_caller]
fn refused(text: &str) -> String {
    match Selector::parse(text) {
        Ok(selector) => panic!("{text:?} was accepted as {selector:?}"),
        Err(error) => chain(&error),
    }
}

#[test]
fn what_kubernetes_accepts_has_one_canonical_form() {
    let cases = [
        ("", ""),
        (" \t\r\n", ""),
        ("x=a,y=b,z=c", "x=a,y=b,z=c"),
        ("z=c,x=a", "x=a,z=c"),
        ("x==a", "x=a"),
        (" x = a , y != b ", "x=a,y!=b"),
        ("x=", "x="),
        ("x= ", "x="),
        ("x=,z= ", "x=,z="),
        ("x!=", "x!="),
        ("x==,y", "x=,y"),
        ("x", "x"),
        ("!x", "!x"),
        ("! x", "!x"),
        ("\rx\n", "x"),
        ("x,y", "x,y"),
        ("x>1,z<5", "x>1,z<5"),
        ("x > 007", "x>7"),
        ("x in (b,a,b)", "x in (a,b)"),
        ("x in(a)", "x=a"),
        ("x\tin\n( a , b )", "x in (a,b)"),
        ("x notin (a)", "x!=a"),
        ("x notin (b,a)", "x notin (a,b)"),
        ("x in ()", "x="),
        ("x in ( )", "x="),
        ("x notin ()", "x!="),
        ("x in (,a)", "x in (,a)"),
        ("x in (a,)", "x in (,a)"),
        ("x in (a,,b)", "x in (,a,b)"),
        ("x in (a,,,b)", "x in (,a,b)"),
        ("x in (,)", "x="),
        ("x in (,,a)", "x in (,a)"),
        ("x in (,,,)", "x="),
        ("x in (a,,,)", "x in (,a)"),
        ("in", "in"),
        ("notin=in", "notin=in"),
        ("in in (in,notin)", "in in (in,notin)"),
        ("!in,notin!=notin", "!in,notin!=notin"),
        ("in,in", "in"),
        ("x=a,x=b", "x=a,x=b"),
        ("x=a,x=a", "x=a"),
        ("x,!x", "x,!x"),
        (
            "0.1.2.domain/99 notin (10.10.100.1, tick.tack.clock)",
            "0.1.2.domain/99 notin (10.10.100.1,tick.tack.clock)",
        ),
        ("heddle.io/Tier_1.x=A-b_c.9", "heddle.io/Tier_1.x=A-b_c.9"),
        ("x!=a,y in (q,p),!z,w", "w,x!=a,y in (p,q),!z"),
    ];
    for (text, canonical) in cases {
        assert_eq!(selector(text).to_string(), canonical, "{text:?}");
    }
}

#[test]
fn what_kubernetes_refuses_is_refused_with_place_and_reason() {
    let cases = [
        (",", "at character 1: found `,`, expected a key or `!`"),
        (
            "x,",
            "at character 3: found the end of the selector, expected a key or `!`",
        ),
        (",x,y", "at character 1: found `,`, expected a key or `!`"),
        ("x,,y", "at character 3: found `,`, expected a key or `!`"),
        ("=a", "at character 1: found `=`, expected a key or `!`"),
        ("(", "at character 1: found `(`, expected a key or `!`"),
        (
            "!",
            "at character 2: found the end of the selector, expected a key",
        ),
        ("!!x", "at character 2: found `!`, expected a key"),
        (
            "!x=a",
            "at character 3: found `=`, expected `,` or the end of the selector",
        ),
        (
            "!x in (a)",
            "at character 4: found `in`, expected `,` or the end of the selector",
        ),
        (
            "x y",
            "at character 3: found `y`, expected `,`, `=`, `==`, `!=`, `in`, `notin`, `<`, `>` or the end of the selector",
        ),
        (
            "x (a)",
            "at character 3: found `(`, expected `,`, `=`, `==`, `!=`, `in`, `notin`, `<`, `>` or the end of the selector",
        ),
        (
            "x==a==b",
            "at character 5: found `==`, expected `,` or the end of the selector",
        ),
        (
            "x=a b",
            "at character 5: found `b`, expected `,` or the end of the selector",
        ),
        ("x=(a)", "at character 3: found `(`, expected a value"),
        ("x=!a", "at character 3: found `!`, expected a value"),
        ("x===a", "at character 4: found `=`, expected a value"),
        (
            "x in",
            "at character 5: found the end of the selector, expected `(`",
        ),
        ("x in a", "at character 6: found `a`, expected `(`"),
        (
            "x in (",
            "at character 7: found the end of the selector, expected a value, `,` or `)`",
        ),
        (
            "x in (a",
            "at character 8: found the end of the selector, expected `,` or `)`",
        ),
        (
            "x in (a,",
            "at character 9: found the end of the selector, expected a value, `,` or `)`",
        ),
        (
            "x in (a b)",
            "at character 9: found `b`, expected `,` or `)`",
        ),
        (
            "x in (a,=)",
            "at character 9: found `=`, expected a value, `,` or `)`",
        ),
        (
            "x in (a,,)",
            "at character 10: found `)`, expected a value or `,`",
        ),
        (
            "x in (,,)",
            "at character 9: found `)`, expected a value or `,`",
        ),
        (
            "x in (a),",
            "at character 10: found the end of the selector, expected a key or `!`",
        ),
        (
            "a in (x)b notin ()",
            "at character 9: found `b`, expected `,` or the end of the selector",
        ),
        (
            "x nott in (y)",
            "at character 3: found `nott`, expected `,`, `=`, `==`, `!=`, `in`, `notin`, `<`, `>` or the end of the selector",
        ),
        (
            "x<a",
            "at character 3: `a` is not a whole number, which `<` and `>` need (key `x`)",
        ),
        (
            "x>",
            "at character 3: `` is not a whole number, which `<` and `>` need (key `x`)",
        ),
        (
            "x>9223372036854775808",
            "at character 3: `9223372036854775808` is not a whole number, which `<` and `>` need (key `x`)",
        ),
        (
            "x=a||y=b",
            "at character 3: bad value for the key `x`: label value `a||y` is not valid: '|' at character 2 is not allowed (only letters, digits, '-', '_' and '.')",
        ),
        (
            "x=a,größe=b",
            "at character 5: bad key: label key `größe` is not valid: 'ö' at character 3 is not allowed (only letters, digits, '-', '_' and '.')",
        ),
        (
            "a/b/c",
            "at character 1: bad key: label key `a/b/c` has more than one '/'",
        ),
        (
            "x=-1",
            "at character 3: bad value for the key `x`: label value `-1` is not valid: it starts with '-' instead of a letter or digit",
        ),
        (
            "x=a\0",
            "at character 3: bad value for the key `x`: label value `a\\u{0}` is not valid: '\\0' at character 2 is not allowed (only letters, digits, '-', '_' and '.')",
        ),
    ];
    for (text, message) in cases {
        assert_eq!(refused(text), message, "{text:?}");
    }
    refused("x>-1");
    refused(&"k".repeat(64));
    refused(&format!("x={}", "v".repeat(64)));
    refused(&format!("x in (a,{})", "v".repeat(64)));
    refused("x\u{a0}in (a)");
}

#[test]
fn matching_follows_kubernetes() {
    let yes = |text: &str, pairs: &[(&str, &str)]| {
        assert!(
            selector(text).matches(&labels(pairs)),
            "{text:?} should match {pairs:?}"
        );
    };
    let no = |text: &str, pairs: &[(&str, &str)]| {
        assert!(
            !selector(text).matches(&labels(pairs)),
            "{text:?} should not match {pairs:?}"
        );
    };
    yes("x=y", &[("x", "y")]);
    yes("x=y,z=w", &[("x", "y"), ("z", "w"), ("v", "u")]);
    no("x=y,z=w", &[("x", "y")]);
    no("x=z", &[]);
    no("x=y", &[("x", "Y")]);
    yes("x=", &[("x", "")]);
    no("x=", &[]);
    yes("x in ()", &[("x", "")]);
    no("x in ()", &[("x", "a")]);
    yes("x in (,a)", &[("x", "")]);
    yes("x in (,a)", &[("x", "a")]);
    no("x in (,a)", &[]);
    yes("x in (c,a,b)", &[("x", "b")]);
    no("x in (c,a,b)", &[("x", "d")]);
    yes("x!=a", &[]);
    yes("x!=a", &[("x", "b")]);
    no("x!=a", &[("x", "a")]);
    yes("x notin (a,b)", &[]);
    yes("x notin (a,b)", &[("x", "")]);
    no("x notin (a,b)", &[("x", "b")]);
    no("x notin (a,)", &[("x", "")]);
    yes("x", &[("x", "")]);
    no("x", &[("y", "x")]);
    yes("!x", &[("y", "")]);
    no("!x", &[("x", "")]);
    yes("x>1", &[("x", "2")]);
    no("x>1", &[("x", "1")]);
    no("x>1", &[]);
    no("x>1", &[("x", "v2")]);
    no("x>1", &[("x", "")]);
    yes("x<1", &[("x", "-5")]);
    yes("x>1", &[("x", "+5")]);
    no("x<5", &[("x", "9223372036854775808")]);
    no("x=a,x=b", &[("x", "a")]);
    yes("x>1,x<5", &[("x", "3")]);
}

#[test]
fn an_empty_selector_selects_nothing() {
    for empty in [selector(""), selector("  "), Selector::default()] {
        assert!(empty.is_empty());
        assert!(!empty.matches(&labels(&[("x", "y")])));
        assert!(!empty.matches(&Labels::new()));
    }
    assert!(!selector("!x").is_empty());
}

#[test]
fn odd_container_labels_are_matched_raw() {
    let odd = labels(&[
        ("com.docker.compose.depends_on", "db:service_started:true"),
        ("", "~"),
        ("x", "a"),
    ]);
    assert!(selector("x=a,com.docker.compose.depends_on").matches(&odd));
    assert!(selector("com.docker.compose.depends_on!=db").matches(&odd));
}

#[test]
fn required_pairs_are_those_with_one_value() {
    let selector = selector("a=1,b in (2),c in (3,4),d!=5,e,!f,g>6,h=");
    let pairs: Vec<_> = selector.required_pairs().collect();
    assert_eq!(pairs, [("a", "1"), ("b", "2"), ("h", "")]);
}

#[test]
fn the_structured_form_means_the_same() {
    let json = serde_json::json!({
        "matchLabels": {"app": "web", "empty": ""},
        "matchExpressions": [
            {"key": "tier", "operator": "In", "values": ["front", "edge"]},
            {"key": "zone", "operator": "NotIn", "values": ["b", ""]},
            {"key": "app", "operator": "Exists"},
            {"key": "canary", "operator": "DoesNotExist", "values": []},
        ],
    });
    let from_map: Selector = serde_json::from_value(json).unwrap();
    assert_eq!(
        from_map,
        selector("app=web,empty=,tier in (edge,front),zone notin (,b),app,!canary")
    );
    let written = serde_json::to_value(&from_map).unwrap();
    assert_eq!(
        written,
        "app=web,app,!canary,empty=,tier in (edge,front),zone notin (,b)"
    );
    assert_eq!(
        serde_json::from_value::<Selector>(written).unwrap(),
        from_map
    );
    assert!(serde_json::from_str::<Selector>("{}").unwrap().is_empty());
}

#[test]
fn the_structured_form_comes_back() {
    let both = selector("x=a,x=b,y in (c,d),z!=e,w,!v");
    let structured = both.to_structured().unwrap();
    assert_eq!(structured.match_labels, labels(&[("x", "a")]));
    assert_eq!(Selector::try_from(structured).unwrap(), both);
    assert_eq!(selector("x>1").to_structured(), None);
}

#[test]
fn errors_of_the_structured_form_name_the_field() {
    let cases = [
        (
            serde_json::json!({"matchExpressions": [{"key": "x", "operator": "In", "values": []}]}),
            "matchExpressions[0].values: operator In takes at least one value (key `x`)",
        ),
        (
            serde_json::json!({"matchExpressions": [{"key": "x", "operator": "Exists", "values": ["a"]}]}),
            "matchExpressions[0].values: operator Exists takes no values (key `x`)",
        ),
        (
            serde_json::json!({"matchExpressions": [
                {"key": "x", "operator": "Exists"},
                {"key": "y", "operator": "In", "values": ["a", "b c"]},
            ]}),
            "matchExpressions[1].values[1]: bad value for the key `y`: label value `b c` is not valid: ' ' at character 2 is not allowed (only letters, digits, '-', '_' and '.')",
        ),
        (
            serde_json::json!({"matchLabels": {"-x": "a"}}),
            "matchLabels: bad key: label key `-x` is not valid: it starts with '-' instead of a letter or digit",
        ),
    ];
    for (json, message) in cases {
        assert_eq!(
            serde_json::from_value::<Selector>(json)
                .unwrap_err()
                .to_string(),
            message
        );
    }
    for json in [
        serde_json::json!({"matchLabel": {"x": "a"}}),
        serde_json::json!({"matchLabels": {"x": true}}),
        serde_json::json!({"matchExpressions": [{"key": "x", "operator": "Gt", "values": ["1"]}]}),
        serde_json::json!({"matchExpressions": [{"key": "x", "operator": "Exists", "value": []}]}),
        serde_json::json!(null),
        serde_json::json!(["x=a"]),
        serde_json::json!(7),
    ] {
        assert!(
            serde_json::from_value::<Selector>(json.clone()).is_err(),
            "{json}"
        );
    }
}

#[test]
fn a_selector_has_a_longest_length() {
    let many = |count: usize| {
        let values: Vec<_> = (0..count).map(|n| format!("{n:0>63}")).collect();
        format!("x in ({})", values.join(","))
    };
    assert!(Selector::parse(&many(1000)).is_ok());
    assert!(refused(&many(1100)).starts_with("a selector may have 65536 bytes at most"));
    assert!(refused(&" ".repeat(MAX_SELECTOR_BYTES + 1)).starts_with("a selector may have"));
    // Written without the space before the parenthesis, the longest text has a canonical form that is
    // one byte too long.
    let tight = |last: usize| {
        let values: Vec<_> = (0..1023).map(|n| format!("{n:v>63}")).collect();
        format!("x in({},{})", values.join(","), "w".repeat(last))
    };
    assert_eq!(tight(58).len(), MAX_SELECTOR_BYTES);
    assert!(refused(&tight(58)).ends_with("this one has 65537"));
    let longest = selector(&tight(57));
    assert_eq!(longest.to_string().len(), MAX_SELECTOR_BYTES);
    assert_eq!(selector(&longest.to_string()), longest);
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        Just("in".to_owned()),
        Just("notin".to_owned()),
        "[a-c]",
        "[0-9]{1,2}"
    ]
}

fn requirement_text() -> impl Strategy<Value = String> {
    let key = prop_oneof![
        Just("in".to_owned()),
        Just("notin".to_owned()),
        "[x-z]",
        "a\\.b/[x-z]"
    ];
    let set = proptest::collection::vec(value(), 1..5)
        .prop_map(|values| format!("({})", values.join(",")))
        // An even run of commas before the closing parenthesis is no set.
        .prop_filter("a set", |set| {
            (set.len() - set.trim_end_matches([',', ')']).len()).saturating_sub(1) % 2 == 1
                || !set.ends_with(",)")
        });
    (key, 0..8, value(), set, 0i64..20).prop_map(|(key, form, value, set, number)| match form {
        0 => format!("{key}={value}"),
        1 => format!("{key}=={value}"),
        2 => format!("{key} != {value}"),
        3 => format!("{key} in {set}"),
        4 => format!("{key} notin{set}"),
        5 => key,
        6 => format!("!{key}"),
        _ => format!("{key} {} {number}", if number % 2 == 0 { '<' } else { '>' }),
    })
}

/// The grammar's meaning once more, straight from the text of one requirement.
fn holds(requirement: &str, labels: &Labels) -> bool {
    let text = requirement.replace(' ', "");
    if let Some(key) = text.strip_prefix('!') {
        return !labels.contains_key(key);
    }
    if let Some(set) = text.strip_suffix(')') {
        let (head, values) = set.split_once('(').unwrap();
        let values: Vec<&str> = values.split(',').collect();
        return match head.strip_suffix("notin").filter(|key| !key.is_empty()) {
            Some(key) => labels
                .get(key)
                .is_none_or(|value| !values.contains(&value.as_str())),
            None => {
                let key = head.strip_suffix("in").unwrap();
                labels
                    .get(key)
                    .is_some_and(|value| values.contains(&value.as_str()))
            }
        };
    }
    let number = |key: &str| labels.get(key).and_then(|value| value.parse::<i64>().ok());
    if let Some((key, value)) = text.split_once("!=") {
        labels.get(key).is_none_or(|found| found != value)
    } else if let Some((key, value)) = text.split_once('=') {
        labels
            .get(key)
            .is_some_and(|found| found == value.trim_start_matches('='))
    } else if let Some((key, bound)) = text.split_once('<') {
        number(key).is_some_and(|n| n < bound.parse().unwrap())
    } else if let Some((key, bound)) = text.split_once('>') {
        number(key).is_some_and(|n| n > bound.parse().unwrap())
    } else {
        labels.contains_key(&text)
    }
}

proptest! {
    #[test]
    fn the_canonical_form_reads_back_as_the_same_selector(
        requirements in proptest::collection::vec(requirement_text(), 0..5)
    ) {
        let text = requirements.join(",");
        let once = Selector::parse(&text).unwrap();
        let twice = Selector::parse(&once.to_string()).unwrap();
        prop_assert_eq!(&once, &twice);
        prop_assert_eq!(once.to_string(), twice.to_string());
        if let Some(structured) = once.to_structured() {
            prop_assert_eq!(Selector::try_from(structured).unwrap(), once);
        }
    }

    #[test]
    fn a_selector_matches_when_each_requirement_holds(
        requirements in proptest::collection::vec(requirement_text(), 1..4),
        labels in proptest::collection::btree_map("in|notin|[x-z]|a\\.b/[x-z]", value(), 0..5),
    ) {
        let expected = requirements.iter().all(|requirement| holds(requirement, &labels));
        prop_assert_eq!(selector(&requirements.join(",")).matches(&labels), expected);
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "[xyin notin=!(),<>\\t\0ä1]{0,24}|\\PC{0,16}") {
        if let Ok(parsed) = Selector::parse(&text) {
            prop_assert_eq!(Selector::parse(&parsed.to_string()), Ok(parsed));
        }
    }
}
