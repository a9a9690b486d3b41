use super::*;

fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        );
    }
    headers
}

fn names(headers: &HeaderMap) -> Vec<&str> {
    headers.keys().map(HeaderName::as_str).collect()
}

#[test]
fn fields_for_this_hop_are_removed() {
    let mut headers = map(&[
        ("host", "web"),
        ("connection", "close, X-Private"),
        ("connection", "x-too"),
        ("x-private", "1"),
        ("x-too", "1"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("te", "gzip"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("http2-settings", "AAMAAABkAARAAAAAAAIAAAAA"),
        ("proxy-authorization", "Basic x"),
        ("trailer", "x-sum"),
        ("accept", "*/*"),
    ]);
    strip(&mut headers);
    assert_eq!(names(&headers), ["host", "trailer", "accept"]);
}

#[test]
fn connection_can_not_name_what_the_message_needs() {
    let mut headers = map(&[
        ("host", "web"),
        ("connection", "host, content-length"),
        ("content-length", "3"),
    ]);
    strip(&mut headers);
    assert_eq!(names(&headers), ["host", "content-length"]);
}

#[test]
fn a_message_without_such_fields_is_left_as_it_is() {
    let mut headers = map(&[("host", "web"), ("accept", "*/*")]);
    strip(&mut headers);
    assert_eq!(names(&headers), ["host", "accept"]);
}

#[test]
fn the_client_is_appended_to_earlier_hops() {
    let address = HeaderValue::from_static("192.0.2.7");
    let mut headers = map(&[
        ("x-forwarded-for", "203.0.113.9"),
        ("x-forwarded-for", "198.51.100.1"),
    ]);
    forwarded(
        &mut headers,
        &address,
        Some(HeaderValue::from_static("web")),
    );
    let all: Vec<_> = headers.get_all(FORWARDED_FOR).iter().collect();
    assert_eq!(all, ["203.0.113.9, 198.51.100.1, 192.0.2.7"]);
    assert_eq!(headers[FORWARDED_HOST], "web");
    assert_eq!(headers[FORWARDED_PROTO], "http");
}

#[test]
fn scheme_and_host_of_a_nearer_proxy_are_kept() {
    let address = HeaderValue::from_static("192.0.2.7");
    let mut headers = map(&[
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "shop.example"),
    ]);
    forwarded(
        &mut headers,
        &address,
        Some(HeaderValue::from_static("web")),
    );
    assert_eq!(headers[FORWARDED_PROTO], "https");
    assert_eq!(headers[FORWARDED_HOST], "shop.example");
}

#[test]
fn split_cookies_become_one_field() {
    let mut headers = map(&[("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")]);
    join_cookies(&mut headers);
    let all: Vec<_> = headers.get_all(COOKIE).iter().collect();
    assert_eq!(all, ["a=1; b=2; c=3"]);
}

#[test]
fn trailers_are_asked_for_by_token_not_by_substring() {
    assert!(accepts_trailers(&map(&[("te", "gzip, Trailers")])));
    assert!(!accepts_trailers(&map(&[("te", "no-trailers")])));
    assert!(!accepts_trailers(&map(&[])));
}
