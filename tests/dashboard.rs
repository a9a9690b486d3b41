//! The page at the admin address, in a real browser.

mod support;

use std::path::PathBuf;

use support::browser::{self, Browser};
use support::docker::Setup;
use support::http;
use support::node::{Node, NodeOptions, PATIENCE};
use support::shop::{Shop, web_checked};
use support::wait::eventually;
use support::whoami::{Whoami, register};

const SERVICE: &str = "
apiVersion: heddle/v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: app=web
  ports: [{name: http, port: 8080, protocol: http}]
  health: {http: {path: /healthz}, interval: 200ms, fall: 2, rise: 2}
";

/// Pictures are kept where this names a folder: the pages are for eyes, after all.
fn picture(browser: &Browser, name: &str) {
    if let Some(folder) = std::env::var_os("HEDDLE_TEST_PICTURES") {
        browser.screenshot(&PathBuf::from(folder).join(name));
    }
}

#[track_caller]
fn nothing_was_refused(browser: &Browser) {
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "{complaints:?}");
}

#[test]
fn a_failing_and_recovering_process_is_seen_as_it_happens() {
    if !browser::ready() {
        return;
    }
    let (a, b) = (Whoami::start("a", &[]), Whoami::start("b", &[]));
    let node = Node::start(&NodeOptions::default());
    node.apply(SERVICE);
    register(&node, "web-a", &a);
    register(&node, "web-b", &b);
    node.eligible("shop/web", 2);
    let url = format!("http://{}/", node.logged_address("admin listens"));
    let browser = Browser::open(1200, 900, false);
    browser.go(&url);
    browser.until_shown("shop/web");
    browser.until_shown("2/2");
    browser.until_shown("live");
    picture(&browser, "well.png");
    // Without a reload from here on: a mark in the page would not outlive one.
    browser.run("window.still = true");
    http::post(b.http, "/health?status=503", "").expect("it is told to fail");
    browser.until_shown("1/2");
    browser.until_shown("GET /healthz: 503");
    browser.until_shown("EndpointUnhealthy");
    picture(&browser, "failing.png");
    http::post(b.http, "/health?status=200", "").expect("it is told to recover");
    browser.until_shown("2/2");
    browser.until_shown("EndpointReady");
    let web = std::net::SocketAddr::new(node.vip("shop/web"), 8080);
    eventually(PATIENCE, "requests are shown in figures", || {
        for _ in 0..20 {
            http::id(web).expect("it answers");
        }
        let figures = browser.run("return document.querySelector('#services .f').textContent");
        let rate: Option<f64> = figures.as_str().and_then(|f| f.parse().ok());
        let of_each =
            "return [...document.querySelectorAll('.endpoints .f')].map((f) => f.textContent)";
        let of_each = browser.run(of_each);
        let both = of_each.as_array().is_some_and(|all| {
            all.len() == 2 && all.iter().all(|f| f.to_string().contains("req/s"))
        });
        rate.filter(|r| *r > 0.0 && both)
            .ok_or(format!("{figures}, {of_each}"))
    });
    node.ok(&["delete", "service", "web", "-n", "shop"]);
    browser.until_shown("There are no services yet");
    assert_eq!(browser.run("return window.still"), true);
    nothing_was_refused(&browser);
}

#[test]
fn a_failing_and_recovering_container_is_seen_as_it_happens() {
    if !browser::ready() {
        return;
    }
    let Some(shop) = Shop::start(Setup::default()) else {
        return;
    };
    let health = "{http: {path: /healthz}, interval: 200ms, fall: 2, rise: 2}";
    shop.node.apply(&web_checked(health));
    shop.run("web-1", &[]);
    shop.until_state("web-1", "ready");
    let url = format!("http://{}/", shop.node.logged_address("admin listens"));
    // The browser lives on the test's host; the node's address is its own host's.
    shop.netns.enter(|| {
        let browser = Browser::open(1200, 900, true);
        browser.go(&url);
        browser.until_shown("1/1");
        let backend = shop.endpoint("web-1").unwrap();
        let address = backend["addresses"][0].as_str().unwrap().parse().unwrap();
        http::post(address, "/health?status=503", "").expect("it is told to fail");
        browser.until_shown("0/1");
        browser.until_shown("has no endpoint to take this");
        picture(&browser, "container-dark.png");
        http::post(address, "/health?status=200", "").expect("it is told to recover");
        browser.until_shown("1/1");
        shop.docker.kill("web-1");
        browser.until_shown("0/0");
        nothing_was_refused(&browser);
    });
}

#[test]
fn what_users_write_is_shown_and_never_run() {
    if !browser::ready() {
        return;
    }
    let evil = "<script>document.title='run'</script><img src=x onerror=\"document.title='run'\">";
    let a = Whoami::start("a", &[]);
    let node = Node::start(&NodeOptions::default());
    node.apply(SERVICE);
    register(&node, "web-a", &a);
    node.eligible("shop/web", 1);
    let url = format!("http://{}/", node.logged_address("admin listens"));
    let browser = Browser::open(390, 800, false);
    browser.go(&url);
    browser.until_shown("1/1");
    // Both ways in: into the page that is loaded, and into what is sent to it.
    for reload in [false, true] {
        node.ok(&["drain", "workload", "web-a", "--reason", evil]);
        if reload {
            browser.go(&url);
        }
        browser.until_shown(evil);
        node.ok(&["undrain", "workload", "web-a"]);
        browser.until_shown("1/1");
    }
    let title = browser.run("return document.title");
    assert_eq!(title, "n1 - heddle");
    let images = browser.run("return document.querySelectorAll('img, main script').length");
    assert_eq!(images, 0);
    picture(&browser, "phone.png");
    // Nothing is wider than a phone.
    let wide = browser.run("return document.documentElement.scrollWidth > window.innerWidth");
    assert_eq!(wide, false);
    nothing_was_refused(&browser);
}

#[test]
fn the_page_needs_no_script_only_reads_and_lets_nobody_frame_it() {
    let node = Node::start(&NodeOptions::default());
    node.apply(SERVICE);
    let admin = node.logged_address("admin listens");
    let page = eventually(PATIENCE, "the service is on the page", || {
        let page = http::get(admin, "/").expect("the page comes");
        if page.body.contains("shop/web") {
            Ok(page)
        } else {
            Err(page.body)
        }
    });
    assert!(
        page.body
            .contains("no workload of namespace shop matches `app=web`")
    );
    let policy = page.header("content-security-policy").unwrap();
    for wanted in [
        "default-src 'none'",
        "frame-ancestors 'none'",
        "script-src 'self'",
    ] {
        assert!(policy.contains(wanted), "{policy}");
    }
    assert!(
        !page.body.contains("<script>") && !page.body.contains(" style="),
        "{}",
        page.body
    );
    let posted = http::post(admin, "/", "").expect("it answers");
    assert_eq!(posted.status, 405);
    let foreign = http::request("GET", admin, "/", &[("host", "evil.example")], "");
    assert_eq!(foreign.expect("it answers").status, 403);
}
