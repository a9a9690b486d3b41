use super::*;
use crate::access::Access;
use crate::metrics::Metrics;
use crate::testing::{FakeUpstream, World, forwarder, settings, world};

const HERE: &str = "127.0.0.1";

fn explainer(world: &World, upstreams: &[SocketAddr]) -> Explainer {
    let handler = Handler::new(
        world.shared(),
        settings(),
        forwarder(upstreams),
        Metrics::new(),
    );
    Explainer::new(Arc::new(handler))
}

async fn ask(explainer: &Explainer, question: &str) -> Explained {
    let (name, kind) = question.split_once(' ').unwrap();
    let from = HERE.parse().unwrap();
    explainer.explain(name, kind, from).await.unwrap()
}

#[tokio::test]
async fn what_the_zone_says_is_explained() {
    let mut world = world();
    world.node("n2", &["192.0.2.2"]);
    let explainer = explainer(&world, &[]);
    for (question, rcode, services, reason) in [
        ("web.shop.svc.heddle.internal A", "NOERROR", "shop/web", ""),
        ("WEB.shop.svc.heddle.internal. a", "NOERROR", "shop/web", ""),
        (
            "_http._tcp.web.shop.svc.heddle.internal SRV",
            "NOERROR",
            "shop/web",
            "",
        ),
        ("db.data.svc.heddle.internal A", "NOERROR", "data/db", ""),
        (
            "172-17-0-2.db.data.svc.heddle.internal A",
            "NOERROR",
            "data/db",
            "",
        ),
        ("7.0.96.10.in-addr.arpa PTR", "NOERROR", "shop/web", ""),
        ("2.0.17.172.in-addr.arpa PTR", "NOERROR", "data/db", ""),
        ("n2.node.heddle.internal A", "NOERROR", "", ""),
        (
            "cart.shop.svc.heddle.internal AAAA",
            "NOERROR",
            "shop/cart",
            "service shop/cart has addresses of IPv4 only",
        ),
        (
            "late.shop.svc.heddle.internal A",
            "NOERROR",
            "shop/late",
            "service shop/late has no virtual IP yet",
        ),
        (
            "gone.data.svc.heddle.internal A",
            "NOERROR",
            "data/gone",
            "headless service data/gone has no endpoint that is ready",
        ),
        (
            "_pg._tcp.gone.data.svc.heddle.internal SRV",
            "NOERROR",
            "data/gone",
            "no endpoint of service data/gone is ready at _pg._tcp",
        ),
        (
            "_grpc._tcp.web.shop.svc.heddle.internal SRV",
            "NXDOMAIN",
            "shop/web",
            "service shop/web has no port _grpc._tcp: it has _http._tcp, _admin._tcp",
        ),
        (
            "10-96-0-7.web.shop.svc.heddle.internal A",
            "NXDOMAIN",
            "shop/web",
            "service shop/web is not headless: its endpoints have no names of their own",
        ),
        (
            "172-17-0-9.db.data.svc.heddle.internal A",
            "NXDOMAIN",
            "data/db",
            "no endpoint of service data/db that is ready is called 172-17-0-9",
        ),
        (
            "no.shop.svc.heddle.internal A",
            "NXDOMAIN",
            "shop/no",
            "service shop/no does not exist",
        ),
        (
            "toys.svc.heddle.internal A",
            "NXDOMAIN",
            "",
            "namespace toys has no service",
        ),
        (
            "shop.svc.heddle.internal A",
            "NOERROR",
            "",
            "shop is a namespace: the names are below it",
        ),
        (
            "n3.node.heddle.internal A",
            "NXDOMAIN",
            "",
            "no node is called n3",
        ),
        (
            "pod.heddle.internal A",
            "NXDOMAIN",
            "",
            "the zone has no such name",
        ),
        (
            "99.0.96.10.in-addr.arpa PTR",
            "NXDOMAIN",
            "",
            "no service has this address",
        ),
    ] {
        let told = ask(&explainer, question).await;
        let keys: Vec<String> = told.services.iter().map(ToString::to_string).collect();
        assert_eq!(
            (
                told.rcode,
                told.source,
                keys.join(" ").as_str(),
                told.reason.as_str()
            ),
            (rcode, Source::Zone, services, reason),
            "{question}"
        );
        assert_eq!(told.upstream, None);
        assert!(told.upstreams.is_empty(), "{question}");
        assert_eq!(told.answers.is_empty(), !reason.is_empty(), "{question}");
    }
}

#[tokio::test]
async fn names_of_others_are_explained_with_who_said_so() {
    let good = FakeUpstream::good().await;
    let explainer = explainer(&world(), &[good.address]);
    let first = ask(&explainer, "example.com A").await;
    assert_eq!((first.source, first.rcode), (Source::Upstream, "NOERROR"));
    assert_eq!(first.upstream, Some(good.address));
    assert_eq!(first.upstreams, [(good.address, true)]);
    assert_eq!(first.answers[0].data, "203.0.113.7");
    let second = ask(&explainer, "example.com A").await;
    assert_eq!(second.source, Source::Cache);
    assert_eq!(second.upstream, Some(good.address));
    assert!((1..=60).contains(&second.answers[0].ttl));
}

#[tokio::test]
async fn refusals_and_failures_say_why() {
    let mut settings = settings();
    settings.access = Access::new(Some(vec!["192.0.2.0/24".parse().unwrap()]));
    let shared = world().shared();
    let handler = Handler::new(shared, settings, forwarder(&[]), Metrics::new());
    let explainer = Explainer::new(Arc::new(handler));
    let told = ask(&explainer, "example.com A").await;
    assert_eq!((told.rcode, told.source), ("REFUSED", Source::Nobody));
    assert_eq!(
        told.reason,
        "127.0.0.1 may not ask about other zones: that is for 192.0.2.0/24 (dns.clients)"
    );
    let from = "192.0.2.7".parse().unwrap();
    let told = explainer.explain("example.com", "A", from).await.unwrap();
    assert_eq!((told.rcode, told.source), ("SERVFAIL", Source::Nobody));
    assert!(
        told.reason.contains("no upstream to ask"),
        "{}",
        told.reason
    );

    let mut world = World::new();
    world.freshness(Freshness::Unsynced);
    let told = ask(
        &self::explainer(&world, &[]),
        "web.shop.svc.heddle.internal A",
    )
    .await;
    assert_eq!((told.rcode, told.source), ("SERVFAIL", Source::Nobody));
    assert!(told.reason.contains("registry"), "{}", told.reason);
}

#[tokio::test]
async fn short_names_get_hints_of_what_a_search_list_makes_of_them() {
    let good = FakeUpstream::good().await;
    let explainer = explainer(&world(), &[good.address]);
    for (name, hint) in [
        (
            "web A",
            Some(
                "with `search shop.svc.heddle.internal` in its resolv.conf, a container would get web.shop.svc.heddle.internal",
            ),
        ),
        (
            "web.shop A",
            Some(
                "with `search svc.heddle.internal` and `options ndots:2` in its resolv.conf, a container would get web.shop.svc.heddle.internal",
            ),
        ),
        (
            "web.shop.svc A",
            Some(
                "with `search heddle.internal` and `options ndots:3` in its resolv.conf, a container would get web.shop.svc.heddle.internal",
            ),
        ),
        ("nobody A", None),
        ("web.shop.svc.heddle.internal A", None),
    ] {
        let told = ask(&explainer, name).await;
        let expected: Vec<&str> = hint.into_iter().collect();
        assert_eq!(told.hints, expected, "{name}");
    }
}

#[tokio::test]
async fn what_can_not_be_asked_is_named() {
    let explainer = explainer(&world(), &[]);
    let from: IpAddr = HERE.parse().unwrap();
    let long = "x".repeat(64);
    for name in ["a..b", &long] {
        let error = explainer.explain(name, "A", from).await.unwrap_err();
        assert_eq!(error, ExplainError::Name(name.to_owned()));
    }
    for kind in ["B", "AXFR", "OPT", "TYPE0", "TYPE70000"] {
        let error = explainer
            .explain("a.example", kind, from)
            .await
            .unwrap_err();
        assert_eq!(error, ExplainError::Kind(kind.to_owned()));
    }
    let told = explainer
        .explain("web.shop.svc.heddle.internal", "type65", from)
        .await;
    assert_eq!(told.unwrap().kind, "HTTPS");
}
