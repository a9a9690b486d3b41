use super::*;
use rcgen::{CertifiedKey as Issued, generate_simple_self_signed};
use tempfile::TempDir;

fn issue(name: &str) -> (String, String) {
    let Issued { cert, signing_key } = generate_simple_self_signed([name.to_owned()]).unwrap();
    (cert.pem(), signing_key.serialize_pem())
}

struct Folder {
    folder: TempDir,
    files: CertificateFiles,
}

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let files = CertificateFiles {
            cert_file: path("cert.pem"),
            key_file: path("key.pem"),
        };
        Folder { folder, files }
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).unwrap();
    }

    fn look(&self, watched: &mut Watched<Pair>) -> bool {
        watched.look(|bytes| pair(&self.files, bytes))
    }
}

#[test]
fn new_files_are_taken_and_bad_ones_are_not() {
    let folder = Folder::new();
    let mut watched = watch_pair(&folder.files);
    assert!(folder.look(&mut watched));
    assert!(watched.good().is_none());
    let error = watched.error().unwrap();
    assert!(
        error.contains("cert.pem can't be read: No such file"),
        "{error}"
    );
    // The same again is no news.
    assert!(!folder.look(&mut watched));

    let (cert, key) = issue("one.example");
    folder.put("cert.pem", &cert);
    folder.put("key.pem", &key);
    assert!(folder.look(&mut watched));
    assert_eq!(watched.error(), None);
    assert_eq!(watched.good().unwrap().facts.names, ["one.example"]);
    assert!(!folder.look(&mut watched));

    // Half of a replacement: the old certificate stays until the other half is there.
    let (cert, key) = issue("two.example");
    folder.put("cert.pem", &cert);
    assert!(folder.look(&mut watched));
    assert!(
        watched
            .error()
            .unwrap()
            .contains("key.pem is not the key of")
    );
    assert_eq!(watched.good().unwrap().facts.names, ["one.example"]);
    folder.put("key.pem", &key);
    assert!(folder.look(&mut watched));
    assert_eq!(watched.error(), None);
    assert_eq!(watched.good().unwrap().facts.names, ["two.example"]);

    // The same length at the same moment is seen too: the times alone would not show it.
    let (cert, key) = issue("six.example");
    folder.put("cert.pem", &cert);
    folder.put("key.pem", &key);
    assert!(folder.look(&mut watched));
    assert_eq!(watched.good().unwrap().facts.names, ["six.example"]);
}

#[test]
fn what_is_wrong_with_files_is_told_with_their_names() {
    let folder = Folder::new();
    let (cert, key) = issue("a.example");
    let large = "x".repeat(1024 * 1024 + 1);
    for (in_cert, in_key, expected) in [
        ("", key.as_str(), "cert.pem: no certificate (PEM) in it"),
        (&key, &key, "cert.pem: no certificate (PEM) in it"),
        (&cert, &cert, "key.pem: no private key (PEM) in it"),
        (&cert, "", "key.pem: no private key (PEM) in it"),
        (
            "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
            &key,
            "cert.pem: not PEM",
        ),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            &key,
            "cert.pem: its first certificate is malformed",
        ),
        (&large, &key, "cert.pem is larger than 1 MiB"),
    ] {
        folder.put("cert.pem", in_cert);
        folder.put("key.pem", in_key);
        let mut watched = watch_pair(&folder.files);
        folder.look(&mut watched);
        let error = watched.error().unwrap();
        assert!(error.contains(expected), "{error}\n not: {expected}");
    }
    fs::remove_file(&folder.files.cert_file).unwrap();
    fs::create_dir(&folder.files.cert_file).unwrap();
    let mut watched = watch_pair(&folder.files);
    folder.look(&mut watched);
    assert!(watched.error().unwrap().contains("cert.pem is not a file"));
}

#[test]
fn a_replaced_link_is_a_change() {
    let folder = Folder::new();
    for name in ["one", "two"] {
        let (cert, key) = issue(&format!("{name}.example"));
        folder.put(&format!("{name}.pem"), &(cert + &key));
    }
    let link = |to: &str| {
        for file in [&folder.files.cert_file, &folder.files.key_file] {
            let _: std::io::Result<()> = fs::remove_file(file);
            std::os::unix::fs::symlink(folder.folder.path().join(to), file).unwrap();
        }
    };
    let mut watched = watch_pair(&folder.files);
    link("one.pem");
    assert!(folder.look(&mut watched));
    link("two.pem");
    assert!(folder.look(&mut watched));
    assert_eq!(watched.good().unwrap().facts.names, ["two.example"]);
}
