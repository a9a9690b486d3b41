use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn span(text: &str) -> Duration {
    text.parse::<Span>()
        .unwrap_or_else(|error| panic!("{error}"))
        .0
}

#[test]
fn durations_carry_units() {
    let cases = [
        ("0s", Duration::ZERO),
        ("10s", Duration::from_secs(10)),
        ("250ms", Duration::from_millis(250)),
        ("5m", Duration::from_secs(300)),
        ("1h30m", Duration::from_secs(5400)),
        ("1h2m3s4ms5us6ns", Duration::new(3723, 4_005_006)),
        ("1.5s", Duration::from_millis(1500)),
        ("0.25h", Duration::from_secs(900)),
        ("1.000000001s", Duration::new(1, 1)),
        ("90s", Duration::from_secs(90)),
        ("7\u{b5}s", Duration::from_micros(7)),
        ("7\u{3bc}s", Duration::from_micros(7)),
        ("87600h", MAX_SPAN),
        ("000000000000000000000000010s", Duration::from_secs(10)),
    ];
    for (text, duration) in cases {
        assert_eq!(span(text), duration, "{text:?}");
    }
}

#[test]
fn a_bad_duration_tells_how_to_write_it() {
    let cases = [
        (
            "10",
            "duration `10` has no unit: write \"10s\" for seconds or \"10ms\" for milliseconds",
        ),
        (
            "0",
            "duration `0` has no unit: write \"0s\" for seconds or \"0ms\" for milliseconds",
        ),
        (
            "2d",
            "duration `2d` has an unknown unit `d`: use h, m, s, ms, us or ns",
        ),
        (
            "10S",
            "duration `10S` has an unknown unit `S`: use h, m, s, ms, us or ns",
        ),
        (
            "10 s",
            "duration `10 s` has an unknown unit ` s`: use h, m, s, ms, us or ns",
        ),
        (
            "30m1h",
            "duration `30m1h` has its units out of order: write each at most once, the largest first, as in \"1h30m\"",
        ),
        (
            "1s1s",
            "duration `1s1s` has its units out of order: write each at most once, the largest first, as in \"1h30m\"",
        ),
        ("0.5ns", "duration `0.5ns` is finer than a nanosecond"),
        (
            "87600h1ns",
            "duration `87600h1ns` is too long: at most 87600h (ten years)",
        ),
    ];
    for (text, message) in cases {
        assert_eq!(text.parse::<Span>().unwrap_err().to_string(), message);
    }
    for text in [
        "", "s", "-1s", "+1s", "1h30", "1..5s", ".5s", "1.s", " 1s", "1e3s", "1h-2m",
    ] {
        assert!(text.parse::<Span>().is_err(), "{text:?}");
    }
    let huge = format!("{}h", "9".repeat(1000))
        .parse::<Span>()
        .unwrap_err();
    assert!(matches!(huge, SpanError::TooLong { .. }), "{huge}");
}

#[test]
fn a_duration_in_a_manifest_needs_its_unit() {
    assert_eq!(
        serde_json::from_str::<Span>("\"5s\"").unwrap(),
        Span(Duration::from_secs(5))
    );
    assert_eq!(
        serde_json::to_string(&Span(Duration::from_millis(90_500))).unwrap(),
        "\"1m30s500ms\""
    );
    let message = serde_json::from_str::<Span>("10").unwrap_err().to_string();
    assert!(message.contains("write \"10s\" for seconds"), "{message}");
    let message = serde_json::from_str::<Span>("1.5").unwrap_err().to_string();
    assert!(message.contains("write \"1.5s\" for seconds"), "{message}");
    assert!(serde_json::from_str::<Span>("-1").is_err());
    assert!(serde_json::from_str::<Span>("true").is_err());
}

#[test]
fn sizes_carry_units() {
    let cases = [
        ("512B", 512, "512B"),
        ("0B", 0, "0B"),
        ("0KiB", 0, "0B"),
        ("64KiB", 65_536, "64KiB"),
        ("10MiB", 10 << 20, "10MiB"),
        ("1GiB", 1 << 30, "1GiB"),
        ("1.5MiB", 3 << 19, "1536KiB"),
        ("1kB", 1000, "1kB"),
        ("2MB", 2_000_000, "2MB"),
        ("3GB", 3_000_000_000, "3GB"),
        ("1024KiB", 1 << 20, "1MiB"),
        ("1000kB", 1_000_000, "1MB"),
        ("1024kB", 1_024_000, "1000KiB"),
        ("1TiB", 1 << 40, "1TiB"),
        ("18446744073709551615B", u64::MAX, "18446744073709551615B"),
    ];
    for (text, bytes, canonical) in cases {
        let size: Size = text.parse().unwrap();
        assert_eq!(
            (size.0, size.to_string().as_str()),
            (bytes, canonical),
            "{text:?}"
        );
    }
}

#[test]
fn a_bad_size_tells_how_to_write_it() {
    let cases = [
        (
            "64",
            "size `64` has no unit: write \"64B\" for bytes or \"64KiB\" for units of 1024",
        ),
        (
            "64K",
            "size `64K` has an unknown unit `K`: use B, KiB, MiB, GiB, TiB or kB, MB, GB, TB",
        ),
        (
            "1KB",
            "size `1KB` has an unknown unit `KB`: use B, KiB, MiB, GiB, TiB or kB, MB, GB, TB",
        ),
        (
            "1.5B",
            "size `1.5B` is not a whole number of bytes of at most 64 bits",
        ),
        (
            "18446744073709551616B",
            "size `18446744073709551616B` is not a whole number of bytes of at most 64 bits",
        ),
        (
            "16777216TiB",
            "size `16777216TiB` is not a whole number of bytes of at most 64 bits",
        ),
        (
            "KiB",
            "`KiB` is not a size: write a number and a unit, as in \"64KiB\" or \"512B\"",
        ),
    ];
    for (text, message) in cases {
        assert_eq!(text.parse::<Size>().unwrap_err().to_string(), message);
    }
    for text in ["", "-1B", "1 KiB", "1KiB ", "1..0B", "1KiB2B"] {
        assert!(text.parse::<Size>().is_err(), "{text:?}");
    }
    assert!(format!("{}B", "9".repeat(1000)).parse::<Size>().is_err());
    assert!(format!("0.{}1B", "0".repeat(1000)).parse::<Size>().is_err());
    let message = serde_json::from_str::<Size>("65536")
        .unwrap_err()
        .to_string();
    assert!(message.contains("write \"65536B\" for bytes"), "{message}");
    assert_eq!(
        serde_json::from_str::<Size>("\"64KiB\"").unwrap(),
        Size(65_536)
    );
    assert_eq!(serde_json::to_string(&Size(65_536)).unwrap(), "\"64KiB\"");
}

#[test]
fn status_ranges_are_a_list() {
    let cases = [
        ("200", "200"),
        ("200-299,301", "200-299,301"),
        (" 301 , 200 - 299 ", "200-299,301"),
        ("200-250,240-299,300", "200-300"),
        ("204,200,202", "200,202,204"),
        ("100-599", "100-599"),
    ];
    for (text, canonical) in cases {
        assert_eq!(
            text.parse::<StatusRanges>().unwrap().to_string(),
            canonical,
            "{text:?}"
        );
    }
    let ranges: StatusRanges = "200-299,301".parse().unwrap();
    let held: Vec<u16> = [199, 200, 299, 300, 301, 302]
        .into_iter()
        .filter(|c| ranges.contains(*c))
        .collect();
    assert_eq!(held, [200, 299, 301]);
    assert_eq!(
        serde_json::from_str::<StatusRanges>("200")
            .unwrap()
            .to_string(),
        "200"
    );
    assert_eq!(
        serde_json::from_str::<StatusRanges>("\"200-299\"").unwrap(),
        StatusRanges::success()
    );
    assert_eq!(serde_json::to_string(&ranges).unwrap(), "\"200-299,301\"");
}

#[test]
fn bad_status_ranges_are_explained() {
    let cases = [
        (
            "",
            "`` is not a status code or a range of them, as in \"200-299,301\"",
        ),
        (
            "2xx",
            "`2xx` is not a status code or a range of them, as in \"200-299,301\"",
        ),
        (
            "200,",
            "`` is not a status code or a range of them, as in \"200-299,301\"",
        ),
        (
            "200-299-300",
            "`200-299-300` is not a status code or a range of them, as in \"200-299,301\"",
        ),
        (
            "99999",
            "`99999` is not a status code or a range of them, as in \"200-299,301\"",
        ),
        (
            "+200",
            "`+200` is not a status code or a range of them, as in \"200-299,301\"",
        ),
        ("99", "status 99 is not between 100 and 599"),
        ("200-600", "status 600 is not between 100 and 599"),
        (
            "299-200",
            "the range 299-200 ends before it starts: write 200-299",
        ),
    ];
    for (text, message) in cases {
        assert_eq!(
            text.parse::<StatusRanges>().unwrap_err().to_string(),
            message
        );
    }
    assert!(serde_json::from_str::<StatusRanges>("70000").is_err());
    assert!(serde_json::from_str::<StatusRanges>("true").is_err());
}

proptest! {
    #[test]
    fn every_duration_within_the_limit_is_written_and_read_back(
        seconds in 0..=MAX_SPAN.as_secs() - 1, nanoseconds in 0u32..1_000_000_000
    ) {
        let span = Span(Duration::new(seconds, nanoseconds));
        prop_assert_eq!(span.to_string().parse(), Ok(span));
    }

    #[test]
    fn every_size_is_written_and_read_back(bytes in any::<u64>(), shift in 0u32..64) {
        for size in [Size(bytes), Size(bytes >> shift << shift), Size((bytes >> shift) / 1000 * 1000)] {
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }
    }

    #[test]
    fn joined_ranges_hold_the_same_codes(
        pairs in proptest::collection::vec((100u16..600, 100u16..600), 1..6), code in any::<u16>()
    ) {
        let pairs: Vec<_> = pairs.into_iter().map(|(a, b)| (a.min(b), a.max(b))).collect();
        let text: Vec<_> = pairs.iter().map(|(a, b)| format!("{a}-{b}")).collect();
        let ranges: StatusRanges = text.join(",").parse().unwrap();
        for code in [code, code % 700] {
            let held = pairs.iter().any(|(a, b)| (*a..=*b).contains(&code));
            prop_assert_eq!(ranges.contains(code), held);
        }
        prop_assert_eq!(ranges.to_string().parse::<StatusRanges>().unwrap(), ranges);
    }

    #[test]
    fn no_text_makes_a_parser_panic(text in "[0-9.hmsuµnkKMGTiB,\\- ]{0,40}|\\PC{0,20}") {
        if let Ok(span) = text.parse::<Span>() {
            prop_assert_eq!(span.to_string().parse(), Ok(span));
        }
        if let Ok(size) = text.parse::<Size>() {
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }
        if let Ok(ranges) = text.parse::<StatusRanges>() {
            prop_assert_eq!(ranges.to_string().parse(), Ok(ranges));
        }
    }
}
