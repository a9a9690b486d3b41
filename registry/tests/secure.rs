//! An etcd that asks for certificates, and one that asks for users.

#[path = "../../tests/support/etcd.rs"]
mod etcd_server;
#[path = "harness/followed.rs"]
mod followed;
#[macro_use]
mod harness;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use etcd_server::{Cluster, Etcd, Options, ServerTls};
use followed::{Followed, connect, mark, mark_surely, target};
use harness::{committed, test, within};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use registry::Registry;
use registry::follow::chain;
use registry::metrics::Metrics;
use registry::store::{
    EtcdOptions, EtcdStore, IdentityFiles, Op, Store, StoreError, TlsFiles, Txn, UserFile,
};
use tokio::task::block_in_place;

/// Of the user `heddle`, and never to be seen in an error.
const PASSWORD: &str = "open-sesame";

/// An authority with its files.
struct Authority {
    folder: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let folder = tempfile::tempdir().expect("a folder");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a certificate");
        fs::write(folder.path().join("ca.pem"), issuer.pem()).expect("a file");
        Authority { folder, issuer }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a certificate with its key, for these names and addresses.
    fn issue(&self, name: &str, subjects: &[&str]) -> IdentityFiles {
        let subjects: Vec<String> = subjects.iter().map(ToString::to_string).collect();
        let params = CertificateParams::new(subjects).expect("names");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let files = IdentityFiles {
            cert: self.file(&format!("{name}.pem")),
            key: self.file(&format!("{name}.key")),
        };
        fs::write(&files.cert, certificate.pem()).expect("a file");
        fs::write(&files.key, key.serialize_pem()).expect("a file");
        files
    }

    fn server(&self) -> Options {
        let files = self.issue("server", &["127.0.0.1"]);
        let tls = ServerTls {
            cert: files.cert,
            key: files.key,
            ca: self.file("ca.pem"),
        };
        Options {
            tls: Some(tls),
            ..Options::default()
        }
    }

    fn client(&self) -> TlsFiles {
        TlsFiles {
            ca: Some(self.file("ca.pem")),
            identity: Some(self.issue("client", &["n1"])),
        }
    }
}

fn etcd(options: Options) -> Option<Etcd> {
    block_in_place(|| Etcd::start_or_skip_with(&test(), options))
}

fn options(endpoints: Vec<String>) -> EtcdOptions {
    EtcdOptions {
        deadline: Duration::from_secs(3),
        connect_timeout: Duration::from_secs(2),
        watch_probe_interval: Duration::from_millis(500),
        ..EtcdOptions::new(endpoints)
    }
}

/// Why nothing can be read, in all words that are shown.
async fn refusal(options: EtcdOptions) -> String {
    let registry = connect(options).await;
    let error = within(registry.store().get("/heddle/v1/mesh"))
        .await
        .expect_err("it is refused");
    chain(&error)
}

fn with_tls(etcd: &Etcd, tls: TlsFiles) -> EtcdOptions {
    EtcdOptions {
        tls,
        ..options(vec![etcd.endpoint()])
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_spoken_to_in_tls_with_a_client_certificate() {
    let authority = Authority::new();
    let server = authority.server();
    let cluster = block_in_place(|| Cluster::start_or_skip_with(&test(), server));
    let Some(mut cluster) = cluster else {
        return;
    };
    let registry = connect(EtcdOptions {
        tls: authority.client(),
        ..options(cluster.endpoints())
    })
    .await;
    let mut followed = Followed::begin(&registry).await;
    let lease = within(registry.store().lease(Duration::from_secs(2))).await;
    let lease = lease.expect("a lease");
    // Fail-over speaks TLS too.
    block_in_place(|| cluster.member_mut(0).kill());
    mark_surely(&registry, "second").await;
    followed.until("it goes on", |f| f.has("second")).await;
    assert!(!lease.lost().is_cancelled());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_tls_is_told_with_what_mends_it() {
    let (authority, other) = (Authority::new(), Authority::new());
    let Some(etcd) = etcd(authority.server()) else {
        return;
    };
    let good = authority.client();
    let wrong_authority = TlsFiles {
        ca: Some(other.file("ca.pem")),
        ..good.clone()
    };
    let said = refusal(with_tls(&etcd, wrong_authority)).await;
    assert!(
        said.contains("invalid peer certificate") && said.contains("registry.ca_file"),
        "{said}"
    );
    let by_name = etcd.endpoint().replace("127.0.0.1", "localhost");
    let said = refusal(EtcdOptions {
        tls: good.clone(),
        ..options(vec![by_name])
    })
    .await;
    assert!(said.contains("registry.endpoints must have"), "{said}");
    // etcd refuses these after the handshake: its words may be overtaken by the end of the connection, but not always.
    let nobody = TlsFiles {
        identity: None,
        ..good.clone()
    };
    let somebody_else = TlsFiles {
        identity: Some(other.issue("client", &["n1"])),
        ..good.clone()
    };
    for tls in [nobody, somebody_else] {
        let refused = async {
            loop {
                let said = refusal(with_tls(&etcd, tls.clone())).await;
                if said.contains("ertificate") || said.contains("UnknownCA") {
                    return;
                }
            }
        };
        within(refused).await;
    }
    // A member without TLS.
    let plain = block_in_place(Etcd::start);
    let said = refusal(EtcdOptions {
        tls: good.clone(),
        ..options(vec![plain.endpoint().replace("http:", "https:")])
    })
    .await;
    assert!(said.contains("does this port of etcd speak tls?"), "{said}");
    // Somebody else who hangs up on what it doesn't know, without having read it all.
    let rude = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let rude = rude.expect("a port");
    let address = rude.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = rude.accept().await {
            // What was sent stays unread.
            let _ = stream.peek(&mut [0]).await;
        }
    });
    let said = refusal(EtcdOptions {
        tls: good.clone(),
        ..options(vec![format!("https://{address}")])
    })
    .await;
    assert!(
        said.contains("reset") && said.contains("does this port of etcd speak tls?"),
        "{said}"
    );
    // And all was well all the time.
    let registry = connect(with_tls(&etcd, good)).await;
    mark_surely(&registry, "first").await;
}

#[tokio::test]
async fn tls_files_that_cannot_be_used_are_named_at_the_start() {
    let (authority, other) = (Authority::new(), Authority::new());
    let good = authority.client();
    let identity = good.identity.clone().expect("it has one");
    let empty = authority.file("empty.pem");
    fs::write(&empty, "nothing\n").expect("a file");
    let with_ca = |ca: &Path| TlsFiles {
        ca: Some(ca.to_owned()),
        ..good.clone()
    };
    let with_key = |key: &Path| TlsFiles {
        identity: Some(IdentityFiles {
            key: key.to_owned(),
            ..identity.clone()
        }),
        ..good.clone()
    };
    let foreign = other.issue("client", &["n1"]);
    for (tls, setting, reason) in [
        (
            with_ca(&authority.file("none")),
            "registry.ca_file",
            "can't be read",
        ),
        (with_ca(&empty), "registry.ca_file", "no certificate"),
        (with_key(&empty), "registry.key_file", "nothing of the kind"),
        (
            with_key(&foreign.key),
            "registry.key_file",
            "registry.cert_file",
        ),
    ] {
        let options = EtcdOptions {
            tls,
            ..EtcdOptions::new(["https://127.0.0.1:1"])
        };
        let error = EtcdStore::connect(options).await.expect_err(setting);
        assert!(matches!(error, StoreError::Config { .. }), "{error:?}");
        let said = error.to_string();
        assert!(said.contains(setting) && said.contains(reason), "{said}");
    }
    let options = EtcdOptions {
        tls: good,
        ..EtcdOptions::new(["http://127.0.0.1:1"])
    };
    let said = EtcdStore::connect(options).await.expect_err("no tls there");
    assert!(said.to_string().contains("for https endpoints"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_read_anew_for_each_connection() {
    let authority = Authority::new();
    let Some(mut etcd) = etcd(authority.server()) else {
        return;
    };
    let tls = authority.client();
    let identity = tls.identity.clone().expect("it has one");
    let registry = connect(with_tls(&etcd, tls)).await;
    mark_surely(&registry, "first").await;
    fs::write(&identity.key, "half a key").expect("a file");
    mark_surely(&registry, "second").await;
    block_in_place(|| {
        etcd.kill();
        etcd.restart();
    });
    let error = within(async {
        loop {
            // The connection that broke is noticed first.
            let error = mark(&registry, "third").await.expect_err("half a key");
            if chain(&error).contains("registry.key_file") {
                return error;
            }
        }
    })
    .await;
    assert!(error.is_outage(), "it may be mended: {error:?}");
    authority.issue("client", &["n1"]);
    mark_surely(&registry, "third").await;
}

fn quick_tokens() -> Options {
    Options {
        args: vec![
            "--auth-token-ttl=1".to_owned(),
            "--bcrypt-cost=4".to_owned(),
        ],
        ..Options::default()
    }
}

struct User {
    folder: tempfile::TempDir,
}

impl User {
    fn new(password: &str) -> User {
        let user = User {
            folder: tempfile::tempdir().expect("a folder"),
        };
        user.set(password);
        user
    }

    fn set(&self, password: &str) {
        fs::write(self.file(), format!("{password}\n")).expect("a file");
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("password")
    }

    fn of(&self, endpoints: Vec<String>) -> EtcdOptions {
        EtcdOptions {
            user: Some(UserFile {
                name: "heddle".to_owned(),
                password_file: self.file(),
            }),
            metrics: Metrics::new(),
            ..options(endpoints)
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_expire_cost_nothing_but_another_log_in() {
    let started = block_in_place(|| Cluster::start_or_skip_with(&test(), quick_tokens()));
    let Some(mut cluster) = started else {
        return;
    };
    block_in_place(|| cluster.member_mut(0).enable_users(PASSWORD));
    let user = User::new(PASSWORD);
    let registry = connect(user.of(cluster.endpoints())).await;
    let metrics = registry.metrics().clone();
    let mut followed = Followed::start(&registry);
    within(mark(&registry, "first")).await.expect("at once");
    followed.until("it follows", |f| f.has("first")).await;
    let before = metrics.authentications(true);
    assert!(before >= 1);

    // The scenario is the passing of time: the token's, twice over and a little.
    tokio::time::sleep(Duration::from_secs(4)).await;
    within(mark(&registry, "second")).await.expect("at once");
    followed
        .until("the watch goes on", |f| f.has("second"))
        .await;
    assert!(metrics.authentications(true) > before, "it logged in again");
    assert_eq!(metrics.calls("commit", "denied"), 0);
    assert_eq!(followed.losses, 0);

    // A lease is renewed all the while.
    let lease = within(registry.store().lease(Duration::from_secs(2))).await;
    let lease = lease.expect("a lease");
    let put = Op::Put {
        key: "/heddle/v1/leased".into(),
        value: "".into(),
        lease: Some(lease.id()),
    };
    committed(registry.store(), Txn::new().then(put)).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let there = within(registry.store().get("/heddle/v1/leased")).await;
    assert!(there.expect("etcd answers").is_some());

    // Another member knows nothing of the token.
    block_in_place(|| cluster.member_mut(0).kill());
    mark_surely(&registry, "third").await;
    followed
        .until("it goes on elsewhere", |f| f.has("third"))
        .await;
    // The auth store's revision goes on with each change of it.
    block_in_place(|| cluster.member_mut(0).restart());
    block_in_place(|| cluster.member(0).change_password("another"));
    user.set("another");
    within(mark(&registry, "fourth")).await.expect("at once");
    followed.until("it goes on", |f| f.has("fourth")).await;
    assert_eq!(metrics.calls("commit", "denied"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_log_in_broke_off_goes_to_another_member() {
    let Some(mut etcd) = etcd(quick_tokens()) else {
        return;
    };
    block_in_place(|| etcd.enable_users(PASSWORD));
    let user = User::new(PASSWORD);
    // Takes a connection and breaks it when something was sent: for all a client knows, it was heard.
    let breaking = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address = breaking.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = breaking.accept().await {
            let _ = stream.readable().await;
        }
    });
    let registry = connect(user.of(vec![format!("http://{address}"), etcd.endpoint()])).await;
    let txn = Txn::create("/heddle/v1/first".to_owned(), b"1".to_vec());
    let written = within(registry.store().commit(txn)).await;
    assert!(written.is_ok(), "the write itself never left: {written:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_told_and_tried_again_until_it_is_mended() {
    let Some(mut etcd) = etcd(quick_tokens()) else {
        return;
    };
    // Users may be configured here before there are any there.
    let user = User::new("guess-again");
    let registry = connect(user.of(vec![etcd.endpoint()])).await;
    within(mark(&registry, "before"))
        .await
        .expect("nobody asks");
    block_in_place(|| etcd.enable_users(PASSWORD));

    let mut followed = Followed::start(&registry);
    followed.until("the refusal", |f| f.lost.is_some()).await;
    let said = followed.lost.clone().unwrap_or_default();
    assert!(
        said.contains("denies access")
            && said.contains("authentication failed")
            && said.contains("registry.username is heddle"),
        "{said}"
    );
    assert!(!said.contains("guess-again"), "{said}");
    let error = within(mark(&registry, "during")).await.expect_err("denied");
    assert!(matches!(error, StoreError::Denied { .. }), "{error:?}");
    let shown = format!("{error:?} {:?}", user.of(Vec::new()));
    assert!(!shown.contains("guess-again"), "{shown}");

    fs::remove_file(user.file()).expect("it is there");
    let said = chain(
        &within(mark(&registry, "during"))
            .await
            .expect_err("no file"),
    );
    assert!(said.contains("registry.password_file"), "{said}");

    user.set(PASSWORD);
    followed
        .until("it is mended", |f| f.lost.is_none() && f.has("before"))
        .await;
    within(mark(&registry, "after")).await.expect("at once");
    followed.until("it follows", |f| f.has("after")).await;
    assert_eq!(followed.losses, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_without_permission_is_told_so() {
    let Some(mut etcd) = etcd(quick_tokens()) else {
        return;
    };
    block_in_place(|| etcd.enable_users(PASSWORD));
    let nobody = connect(options(vec![etcd.endpoint()])).await;
    let error = within(mark(&nobody, "x")).await.expect_err("who asks?");
    assert!(chain(&error).contains("user name is empty"), "{error:?}");

    let user = User::new(PASSWORD);
    let store = EtcdStore::connect(user.of(vec![etcd.endpoint()])).await;
    let store: Arc<dyn Store> = Arc::new(store.expect("the options are good"));
    let elsewhere = Registry::new(store, "/elsewhere");
    let said = chain(&within(mark(&elsewhere, "x")).await.expect_err("denied"));
    assert!(said.contains("permission denied"), "{said}");
    let mut followed = Followed::start(&elsewhere);
    followed.until("the refusal", |f| f.lost.is_some()).await;
    let said = followed.lost.clone().unwrap_or_default();
    assert!(said.contains("permission denied"), "{said}");
    let missing = within(elsewhere.unmark(&target("x"))).await;
    assert!(missing.is_err());
}
