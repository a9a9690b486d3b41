//! Heads that are read, and heads that are not.

use super::super::{Framing, HeadError, RequestHead, ResponseHead, Storage};

/// What a head says, owned.
#[derive(Debug, PartialEq)]
struct Read {
    path: String,
    host: Option<String>,
    framing: Framing,
    keep_alive: bool,
}

fn request(text: &str) -> Result<Option<Read>, HeadError> {
    let mut storage = Storage::new();
    let head = RequestHead::parse(text.as_bytes(), &mut storage)?;
    Ok(head.map(|head| Read {
        path: head.path.to_owned(),
        host: head
            .host
            .map(|host| String::from_utf8(host.to_vec()).unwrap()),
        framing: head.framing,
        keep_alive: head.keep_alive,
    }))
}

fn get(target: &str) -> Result<Option<Read>, HeadError> {
    request(&format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n"))
}

#[test]
fn a_head_is_read_once_it_is_whole() {
    let whole = "POST /a?b=c HTTP/1.1\r\nHost: shop:80\r\nContent-Length: 12\r\n\r\n";
    for end in 0..whole.len() {
        assert_eq!(request(&whole[..end]), Ok(None), "{end} bytes");
    }
    let read = Read {
        path: "/a?b=c".into(),
        host: Some("shop:80".into()),
        framing: Framing::Length(12),
        keep_alive: true,
    };
    assert_eq!(request(whole), Ok(Some(read)));
}

#[test]
fn targets_are_paths_or_http_addresses() {
    let of = |target: &str| {
        let read = get(target).unwrap().unwrap();
        (read.path, read.host.unwrap())
    };
    let is = |path: &str, host: &str| (path.to_owned(), host.to_owned());
    assert_eq!(of("/"), is("/", "h"));
    assert_eq!(of("http://x.example:8/p?q"), is("/p?q", "x.example:8"));
    assert_eq!(of("HTTPS://x.example"), is("/", "x.example"));
    assert_eq!(of("http://[::1]:80/"), is("/", "[::1]:80"));
    let options = "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n";
    assert_eq!(request(options).unwrap().unwrap().path, "*");
    let options = "OPTIONS http://x HTTP/1.1\r\nHost: h\r\n\r\n";
    assert_eq!(request(options).unwrap().unwrap().path, "*");
    for bad in [
        "*",
        "x",
        "/a#b",
        "http://",
        "http:///p",
        "http://u@x/",
        "http://x?q",
        "ftp://x/",
        "//\u{7f}",
        "/\u{e9}",
    ] {
        assert!(get(bad).is_err(), "{bad}");
    }
}

#[test]
fn connections_are_kept_as_their_version_says() {
    let keeps = |text: &str| request(text).unwrap().unwrap().keep_alive;
    assert!(keeps("GET / HTTP/1.1\r\nHost: h\r\n\r\n"));
    assert!(!keeps(
        "GET / HTTP/1.1\r\nHost: h\r\nConnection: Close\r\n\r\n"
    ));
    assert!(!keeps("GET / HTTP/1.0\r\n\r\n"));
    assert!(keeps("GET / HTTP/1.0\r\nConnection: x, keep-alive\r\n\r\n"));
    assert!(!keeps(
        "GET / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive\r\nConnection: close\r\n\r\n"
    ));
}

#[test]
fn what_two_readers_could_read_differently_is_refused() {
    for (what, fields) in [
        ("two lengths", "Content-Length: 3\r\nContent-Length: 3\r\n"),
        ("a list of lengths", "Content-Length: 3, 3\r\n"),
        ("a signed length", "Content-Length: +3\r\n"),
        ("a negative length", "Content-Length: -3\r\n"),
        ("an empty length", "Content-Length: \r\n"),
        ("a length with a space", "Content-Length: 1 2\r\n"),
        ("a huge length", "Content-Length: 99999999999999999999\r\n"),
        (
            "length and chunks",
            "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        ),
        (
            "two codings",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        ),
        ("chunked not alone", "Transfer-Encoding: gzip, chunked\r\n"),
        (
            "chunked not last",
            "Transfer-Encoding: chunked, identity\r\n",
        ),
        ("chunked twice", "Transfer-Encoding: chunked, chunked\r\n"),
        ("an unknown coding", "Transfer-Encoding: xchunked\r\n"),
        ("a quoted coding", "Transfer-Encoding: \"chunked\"\r\n"),
        (
            "a coding with a parameter",
            "Transfer-Encoding: chunked;q=1\r\n",
        ),
        (
            "a coding behind a vertical tab",
            "Transfer-Encoding: \u{b}chunked\r\n",
        ),
        ("identity", "Transfer-Encoding: identity\r\n"),
        ("space before the colon", "Content-Length : 3\r\n"),
        ("tab before the colon", "Transfer-Encoding\t: chunked\r\n"),
        ("a folded line", "X: 1\r\n Content-Length: 3\r\n"),
        (
            "a line folded by a tab",
            "X: 1\r\n\tTransfer-Encoding: chunked\r\n",
        ),
        ("a leading space", " X: 1\r\n"),
        ("LF alone", "X: 1\nContent-Length: 3\r\n"),
        ("LF alone before the end", "X: 1\r\n\n"),
        ("CR alone", "X: 1\rContent-Length: 3\r\n"),
        ("NUL in a value", "X: a\0b\r\n"),
        ("NUL in a name", "X\0: a\r\n"),
        ("DEL in a value", "X: a\u{7f}\r\n"),
        ("no name", ": 1\r\n"),
        ("no colon", "nonsense\r\n"),
        ("a bracket in a name", "X[0]: 1\r\n"),
        ("a second host", "Host: other\r\n"),
        ("two upgrades", "Upgrade: a\r\nUpgrade: b\r\n"),
    ] {
        let text = format!("POST / HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
        assert!(
            request(&text).is_err(),
            "{what} was read: {:?}",
            request(&text)
        );
    }
    for (what, text) in [
        (
            "a space in the method",
            "G ET / HTTP/1.1\r\nHost: h\r\n\r\n",
        ),
        ("two spaces", "GET  / HTTP/1.1\r\nHost: h\r\n\r\n"),
        ("a tab", "GET\t/ HTTP/1.1\r\nHost: h\r\n\r\n"),
        (
            "a target with a space",
            "GET /a b HTTP/1.1\r\nHost: h\r\n\r\n",
        ),
        ("HTTP/0.9", "GET /\r\n\r\n"),
        ("HTTP/1.2", "GET / HTTP/1.2\r\nHost: h\r\n\r\n"),
        ("HTTP/3.7", "GET / HTTP/3.7\r\nHost: h\r\n\r\n"),
        ("lower case", "GET / http/1.1\r\nHost: h\r\n\r\n"),
        (
            "LF behind the first line",
            "GET / HTTP/1.1\nHost: h\r\n\r\n",
        ),
        ("no host", "GET / HTTP/1.1\r\n\r\n"),
        ("a host with a path", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
        ("a host with a user", "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n"),
        ("a host with a space", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
        (
            "chunks in HTTP/1.0",
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        ),
        ("a tunnel", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"),
    ] {
        assert!(
            request(text).is_err(),
            "{what} was read: {:?}",
            request(text)
        );
    }
}

#[test]
fn too_many_fields_are_refused_by_name() {
    let fields = |n: usize| "X: 1\r\n".repeat(n);
    let text = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", fields(127));
    assert!(request(&text).unwrap().is_some());
    let text = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", fields(128));
    let error = request(&text).unwrap_err();
    assert_eq!(
        (error.status.as_u16(), error.to_string().as_str()),
        (431, "the head has more than 128 fields")
    );
}

#[test]
fn fields_that_connection_names_are_left_out_but_never_what_a_message_is() {
    let text = "GET / HTTP/1.1\r\nHost: h\r\nConnection: X-A, host, content-type, close\r\nX-A: 1\r\nX-B: 2\r\n\
                Content-Type: a/b\r\nKeep-Alive: 5\r\nTE: trailers\r\nProxy-Connection: x\r\n\r\n";
    let mut storage = Storage::new();
    let head = RequestHead::parse(text.as_bytes(), &mut storage)
        .unwrap()
        .unwrap();
    let passed: Vec<&str> = head.fields.passed().map(|(_, name, _)| name).collect();
    assert_eq!(passed, ["Host", "X-B", "Content-Type"]);
}

fn response(text: &str, head: bool) -> Result<Option<(u16, Framing, bool)>, HeadError> {
    let mut storage = Storage::new();
    let read = ResponseHead::parse(text.as_bytes(), head, &mut storage)?;
    Ok(read.map(|read| (read.status, read.framing, read.keep_alive)))
}

#[test]
fn a_responses_body_ends_where_its_head_says() {
    let of = |text: &str| response(text, false).unwrap().unwrap();
    let ok = |fields: &str| of(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n"));
    assert_eq!(ok("Content-Length: 5\r\n"), (200, Framing::Length(5), true));
    assert_eq!(
        ok("Transfer-Encoding: chunked\r\n"),
        (200, Framing::Chunked, true)
    );
    assert_eq!(ok(""), (200, Framing::UntilClose, false));
    assert_eq!(
        of("HTTP/1.1 204 No Content\r\n\r\n"),
        (204, Framing::Empty, true)
    );
    assert_eq!(
        of("HTTP/1.1 304\r\nContent-Length: 5\r\n\r\n"),
        (304, Framing::Empty, true)
    );
    assert_eq!(
        of("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n"),
        (200, Framing::Length(5), false)
    );
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(response(head, true), Ok(Some((200, Framing::Empty, true))));
    // Old servers end lines with LF alone; what leaves is written anew.
    assert_eq!(
        of("HTTP/1.1 200 OK\nContent-Length: 5\n\n"),
        (200, Framing::Length(5), true)
    );
}

#[test]
fn responses_of_two_minds_are_refused() {
    for fields in [
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: five\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "X : 1\r\n",
        "X: 1\r\n folded\r\n",
        "X: a\0b\r\n",
    ] {
        let text = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
        assert!(response(&text, false).is_err(), "{fields:?}");
    }
    for text in [
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2p1\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
    ] {
        assert!(response(text, false).is_err(), "{text:?}");
    }
}
