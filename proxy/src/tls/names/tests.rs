use super::super::files;
use super::*;
use model::service::CertificateFiles;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SignatureAlgorithm};

fn pair(names: &[&str], algorithm: &'static SignatureAlgorithm) -> Pair {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let key = KeyPair::generate_for(algorithm).unwrap();
    let params = CertificateParams::new(names).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let bytes = [
        certificate.pem().into_bytes(),
        key.serialize_pem().into_bytes(),
    ];
    files::pair(&CertificateFiles::default(), &bytes).unwrap()
}

#[test]
fn the_name_that_is_asked_for_decides_and_the_first_is_for_all_others() {
    let pairs = [
        pair(&["main.example"], &PKCS_ECDSA_P256_SHA256),
        pair(&["*.shop.example", "shop.example"], &PKCS_ECDSA_P256_SHA256),
        pair(&["pay.shop.example"], &PKCS_ECDSA_P256_SHA256),
        // A name that an earlier one has, too.
        pair(&["main.example"], &PKCS_ECDSA_P256_SHA256),
    ];
    let by_name = ByName::new(&pairs);
    for (name, expected) in [
        (Some("main.example"), 0),
        (Some("shop.example"), 1),
        (Some("www.shop.example"), 1),
        (Some("pay.shop.example"), 2),
        // A wildcard stands for one label only.
        (Some("a.b.shop.example"), 0),
        (Some("example"), 0),
        (Some("unknown.test"), 0),
        (Some(""), 0),
        (None, 0),
    ] {
        let chosen = by_name.choose(name, |_| true).unwrap();
        assert!(Arc::ptr_eq(chosen, &pairs[expected].key), "{name:?}");
    }
}

#[test]
fn of_two_certificates_for_a_name_the_client_gets_one_that_it_can_verify() {
    let pairs = [
        pair(&["a"], &PKCS_ED25519),
        pair(&["b"], &PKCS_ED25519),
        pair(&["b"], &PKCS_ECDSA_P256_SHA256),
    ];
    let by_name = ByName::new(&pairs);
    let ecdsa = |key: &CertifiedKey| {
        use tokio_rustls::rustls::SignatureScheme::ECDSA_NISTP256_SHA256;
        key.key.choose_scheme(&[ECDSA_NISTP256_SHA256]).is_some()
    };
    assert!(Arc::ptr_eq(
        by_name.choose(Some("b"), ecdsa).unwrap(),
        &pairs[2].key
    ));
    // None of its name suits: any that does, then.
    assert!(Arc::ptr_eq(
        by_name.choose(Some("a"), ecdsa).unwrap(),
        &pairs[2].key
    ));
    assert!(by_name.choose(Some("a"), |_| false).is_none());
}
