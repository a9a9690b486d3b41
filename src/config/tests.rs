mod reference;

use super::*;

const FULL: &str = r#"
[node]
name = "n1"
zone = "eu-1a"
address = "192.0.2.2"
routable = ["10.1.0.0/16"]
state_dir = "/var/lib/heddle"

[registry]
backend = "etcd"
endpoints = ["https://10.0.0.1:2379"]
username = "heddle"
password_file = "/etc/heddle/etcd.password"
ca_file = "/etc/heddle/etcd-ca.pem"
cert_file = "/etc/heddle/etcd.pem"
key_file = "/etc/heddle/etcd.key"
prefix = "/heddle"
lease_ttl = "10s"
expiry_hold = "10m"
collect_after = "60s"

[docker]
enabled = true
socket = "unix:///var/run/docker.sock"

[resources]
path = "/etc/heddle/resources"

[mesh]
vip_range = ["10.96.0.0/16"]
zone = "heddle.internal"

[proxy]
workers = 2
drain_timeout = "30s"
trusted_proxies = ["10.0.0.0/8"]
forwarded = false
via = false
request_id = true
start_traces = false

[dns]
listen = ["10.96.0.10:53"]
upstreams = ["system", "192.0.2.53"]
zones = ["corp.example=10.0.0.53"]
cache_size = "16MiB"
clients = ["10.0.0.0/8"]
single_answer = false
nsid = "n1"
version = "heddle"
tls_listen = ["10.96.0.10:853"]
cert_file = "/etc/heddle/dns.pem"
key_file = "/etc/heddle/dns.key"
transfer_to = ["192.0.2.53", "10.0.7.0/24"]
query_log = 100

[admin]
socket = "/run/heddle/heddle.sock"
listen = "127.0.0.1:7070"
"#;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("heddle.toml"), text, |_| None)
}

#[test]
fn every_key_is_read_and_known_to_the_environment() {
    let config = parse(FULL).unwrap();
    assert_eq!(config.node.as_str(), "n1");
    assert_eq!(config.workers, 2);
    assert_eq!(config.dns_upstreams.len(), 2);
    let table: toml::Table = toml::from_str(FULL).unwrap();
    let written: Vec<String> = table
        .iter()
        .flat_map(|(section, keys)| {
            let keys = keys.as_table().unwrap();
            keys.keys().map(move |key| format!("{section}.{key}"))
        })
        .collect();
    let known: Vec<&str> = file::keys().map(|key| key.name).collect();
    for key in &written {
        assert!(
            known.contains(&key.as_str()),
            "{key} has no environment override"
        );
    }
    assert_eq!(written.len(), known.len(), "the example above lacks a key");
}

fn endpoints_of(config: &Config) -> Vec<String> {
    match &config.backend {
        Backend::Etcd(etcd) => etcd.endpoints.clone(),
        Backend::Embedded => Vec::new(),
    }
}

#[test]
fn files_of_etcd_that_cannot_be_read_are_named_with_their_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("heddle.toml");
    std::fs::write(&file, FULL.replace("/etc/heddle/etcd", "/nowhere/etcd")).unwrap();
    let error = Config::load(Some(&file)).unwrap_err().to_string();
    let expected = "registry.ca_file: /nowhere/etcd-ca.pem can't be read: No such file";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn nothing_is_required() {
    let config = parse("").unwrap();
    assert_eq!(config.backend, Backend::Embedded);
    assert_eq!(config.drain_timeout, Duration::from_secs(30));
    assert!(!config.addresses.is_empty());
}

#[test]
fn the_environment_overrides_the_file() {
    let config = Config::parse(Path::new("heddle.toml"), FULL, |name| match name {
        "HEDDLE_REGISTRY_ENDPOINTS" => Some("https://a:1, https://b:2".into()),
        "HEDDLE_PROXY_WORKERS" => Some("7".into()),
        "HEDDLE_DOCKER_ENABLED" => Some("false".into()),
        _ => None,
    })
    .unwrap();
    assert_eq!(endpoints_of(&config), ["https://a:1", "https://b:2"]);
    assert_eq!(config.workers, 7);
    assert_eq!(config.docker, None);
}

#[test]
fn a_range_may_be_one_string() {
    let config = parse("[mesh]\nvip_range = \"127.96.0.0/16\"").unwrap();
    assert_eq!(
        config.vip_ranges,
        Some(vec!["127.96.0.0/16".parse().unwrap()])
    );
}

#[test]
fn what_is_wrong_is_named_with_its_key() {
    for (text, expected) in [
        ("[nod]\nname = \"x\"", "did you mean `node`?"),
        ("[node]\nnmae = \"x\"", "did you mean `name`?"),
        ("[node]\nname = \"X_1\"", "node.name"),
        (
            "[registry]\nbackend = \"consul\"",
            "neither embedded nor etcd",
        ),
        (
            "[registry]\nbackend = \"etcd\"",
            "registry.endpoints: etcd needs at least one",
        ),
        (
            "[registry]\nendpoints = [\"http://a:1\"]",
            "registry.backend = \"etcd\"",
        ),
        (
            "[registry]\nusername = \"x\"",
            "registry.username: is for etcd",
        ),
        (
            "[registry]\nbackend = \"etcd\"\nendpoints = [\"https://a:1\", \"http://b:1\"]",
            "http and https don't mix",
        ),
        (
            "[registry]\nbackend = \"etcd\"\nendpoints = [\"ftp://a:1\"]",
            "`ftp://a:1` is not like",
        ),
        (
            "[registry]\nbackend = \"etcd\"\nendpoints = [\"http://a:1\"]\nca_file = \"/ca\"",
            "registry.ca_file: is for https endpoints",
        ),
        (
            "[registry]\nbackend = \"etcd\"\nendpoints = [\"https://a:1\"]\ncert_file = \"/c\"",
            "registry.cert_file: needs registry.key_file too",
        ),
        (
            "[registry]\nbackend = \"etcd\"\nendpoints = [\"https://a:1\"]\nkey_file = \"/k\"",
            "registry.key_file: needs registry.cert_file too",
        ),
        (
            "[registry]\nbackend = \"etcd\"\nendpoints = [\"http://a:1\"]\npassword_file = \"/p\"",
            "registry.password_file: needs registry.username too",
        ),
        ("[registry]\nlease_ttl = 10", "registry.lease_ttl"),
        (
            "[registry]\ncollect_after = \"10ms\"",
            "registry.collect_after",
        ),
        (
            "[mesh]\nvip_range = \"10.96.0.1/16\"",
            "the network is 10.96.0.0/16",
        ),
        (
            "[mesh]\nvip_range = [\"10.96.0.0/16\", \"10.96.1.0/24\"]",
            "overlaps",
        ),
        ("[mesh]\nzone = \"heddle..x\"", "mesh.zone"),
        ("[proxy]\nworkers = 0", "proxy.workers: at least 1"),
        ("[proxy]\ndrain_timeout = \"30\"", "proxy.drain_timeout"),
        ("[dns]\nupstreams = [\"dns.example\"]", "dns.upstreams"),
        ("[dns]\nlisten = [\"10.96.0.10\"]", "dns.listen"),
        (
            "[dns]\ntls_listen = [\"127.0.0.1:853\"]\ncert_file = \"/c.pem\"",
            "dns.key_file: dns.tls_listen needs it",
        ),
        (
            "[dns]\ntls_listen = [\"127.0.0.1:853\"]",
            "dns.cert_file: dns.tls_listen needs it",
        ),
        (
            "[dns]\nkey_file = \"/k.pem\"",
            "dns.tls_listen: nothing is served by TLS without it",
        ),
        (
            "[dns]\ntransfer_to = [\"ns2.example\"]",
            "dns.transfer_to: `ns2.example` is neither an address nor a network",
        ),
        (
            "[dns]\ntransfer_to = [\"192.0.2.1/24\"]",
            "dns.transfer_to: `192.0.2.1/24`",
        ),
        ("[dns]\nquery_log = -1", "dns.query_log"),
        ("[dns]\ncache_size = 16", "dns.cache_size"),
        ("[dns]\nclients = [\"here\"]", "dns.clients"),
        ("[dns]\nsingle_answer = \"yes\"", "dns.single_answer"),
        ("[dns]\nzones = [\"corp.example\"]", "dns.zones"),
        ("[dns]\nzones = [\"a..b=10.0.0.53\"]", "dns.zones"),
        ("[dns]\nzones = [\"corp.example=dns\"]", "dns.zones"),
        (
            "[docker]\nsocket = \"/var/run/docker.sock\"",
            "docker.socket",
        ),
        ("node = ", "not TOML"),
    ] {
        let error = parse(text).expect_err(text).to_string();
        assert!(
            error.contains(expected),
            "{text}\n gave: {error}\n not: {expected}"
        );
        assert!(error.starts_with("heddle.toml"), "{error}");
    }
}

#[test]
fn a_bad_variable_is_named() {
    let error = Config::parse(Path::new("heddle.toml"), "", |name| {
        (name == "HEDDLE_PROXY_WORKERS").then(|| "many".into())
    })
    .unwrap_err()
    .to_string();
    assert_eq!(
        error,
        "HEDDLE_PROXY_WORKERS: proxy.workers: `many` is not a number"
    );
}

#[test]
fn the_keys_of_dns_say_what_they_say() {
    let config = parse(FULL).unwrap();
    let dns = config.dns;
    assert_eq!(dns.zones.len(), 1);
    assert_eq!(dns.cache, 16 << 20);
    assert_eq!(dns.clients.map(|all| all.len()), Some(1));
    assert_eq!(dns.nsid.as_deref(), Some("n1"));
    assert_eq!(dns.version.as_deref(), Some("heddle"));
    let tls = dns.tls.unwrap();
    assert_eq!(tls.listen, ["10.96.0.10:853".parse().unwrap()]);
    assert_eq!(tls.files.cert_file, "/etc/heddle/dns.pem");
    assert_eq!(tls.files.key_file, "/etc/heddle/dns.key");
    let networks: Vec<String> = dns.transfer_to.iter().map(ToString::to_string).collect();
    assert_eq!(networks, ["192.0.2.53/32", "10.0.7.0/24"]);
    assert_eq!(dns.query_log, 100);

    let two =
        "[dns]\nzones = [\"a.example=10.0.0.1\", \"b.example=system\", \"a.example=10.0.0.2:54\"]";
    let zones = parse(two).unwrap().dns.zones;
    let upstreams = |index: usize| zones[index].1.len();
    assert_eq!((zones.len(), upstreams(0), upstreams(1)), (2, 2, 1));
    let single = parse("[dns]\nsingle_answer = true").unwrap().dns;
    assert!(single.single_answer && single.tls.is_none() && single.transfer_to.is_empty());
    let long = format!("[dns]\nversion = \"{}\"", "x".repeat(256));
    let error = parse(&long).unwrap_err().to_string();
    assert!(error.contains("dns.version: at most 255 bytes"), "{error}");
}
