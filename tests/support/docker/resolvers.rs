//! Images with the two resolvers that containers have: glibc's, with this machine's own `getent`, and musl's, in a program
//! of ten lines. There is no registry to pull from.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::super::{missing_program, program};
use super::Dockerd;

/// The image with glibc's resolver.
pub const GLIBC: &str = "resolver-glibc";
/// The image with musl's resolver.
pub const MUSL: &str = "resolver-musl";

/// Prints the addresses of a name as `getent ahosts` does, and fails where there are none.
const LOOK_UP: &str = r#"
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
int main(int argc, char **argv) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *all, *one;
    char text[INET6_ADDRSTRLEN];
    int error = getaddrinfo(argv[argc - 1], 0, &hints, &all);
    if (error) return fprintf(stderr, "%s\n", gai_strerror(error)), 2;
    for (one = all; one; one = one->ai_next) {
        void *address = one->ai_family == AF_INET6
            ? (void *)&((struct sockaddr_in6 *)one->ai_addr)->sin6_addr
            : (void *)&((struct sockaddr_in *)one->ai_addr)->sin_addr;
        puts(inet_ntop(one->ai_family, address, text, sizeof text));
    }
    return 0;
}
"#;

/// What this machine lacks for them, in words.
pub fn missing() -> Option<String> {
    missing_program(&["getent", "ldd", "tar", "musl-gcc"])
}

fn output(command: &mut Command) -> String {
    let output = command.output().expect("it runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A file and the libraries that it is linked with.
fn with_libraries(file: &Path) -> Vec<PathBuf> {
    let text = output(Command::new("ldd").arg(file));
    let words = text.split_whitespace().filter(|word| word.starts_with('/'));
    let libraries = words.map(PathBuf::from);
    libraries.chain([file.to_owned()]).collect()
}

impl Dockerd {
    /// Imports both images.
    pub fn import_resolvers(&self) {
        let folder = tempfile::tempdir().expect("a folder for images");
        let root = folder.path().join("glibc");
        let getent = program("getent").expect("getent is installed");
        let mut files = with_libraries(&getent);
        // What glibc loads when a name is looked up; since 2.34 that is a part of itself.
        let beside = files.iter().find_map(|file| {
            let name = file.file_name()?.to_string_lossy().into_owned();
            name.starts_with("libc.so")
                .then(|| file.parent().map(Path::to_owned))?
        });
        let beside = beside.expect("getent is linked with glibc");
        for module in ["libnss_dns.so.2", "libnss_files.so.2", "libresolv.so.2"] {
            let module = beside.join(module);
            files.extend(module.exists().then_some(module));
        }
        for file in files {
            let to = root.join(file.strip_prefix("/").expect("an absolute path"));
            std::fs::create_dir_all(to.parent().expect("a folder")).expect("it is made");
            std::fs::copy(&file, to).expect("it is copied");
        }
        std::fs::create_dir_all(root.join("etc")).expect("it is made");
        std::fs::write(root.join("etc/nsswitch.conf"), "hosts: files dns\n")
            .expect("it is written");
        let to = root.join("bin/look-up");
        std::fs::create_dir_all(root.join("bin")).expect("it is made");
        std::fs::copy(&getent, to).expect("it is copied");
        self.import(&root, r#"ENTRYPOINT ["/bin/look-up", "ahosts"]"#, GLIBC);

        let root = folder.path().join("musl");
        std::fs::create_dir_all(root.join("bin")).expect("it is made");
        let source = folder.path().join("look-up.c");
        std::fs::write(&source, LOOK_UP).expect("it is written");
        let mut compile = Command::new("musl-gcc");
        compile.args(["-static", "-Os", "-o"]);
        output(compile.arg(root.join("bin/look-up")).arg(&source));
        self.import(&root, r#"ENTRYPOINT ["/bin/look-up"]"#, MUSL);
    }

    fn import(&self, root: &Path, change: &str, image: &str) {
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(root).args(["-c", "."]);
        let mut tar = tar.stdout(Stdio::piped()).spawn().expect("tar runs");
        let mut import = self.command(&["import", "--change", change, "-", image]);
        import.stdin(tar.stdout.take().expect("it is piped"));
        output(&mut import);
        assert!(tar.wait().expect("tar ends").success());
    }

    /// The addresses of a name as a container's resolver has them, each once, sorted; none where it finds nothing.
    pub fn look_up(&self, image: &str, options: &[&str], name: &str) -> Vec<String> {
        let words = [&["run", "--rm"], options, &[image, name]].concat();
        let output = self.command(&words).output().expect("docker runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        // 2: nothing was found, for both.
        let code = output.status.code();
        assert!(matches!(code, Some(0 | 2)), "{words:?}: {code:?}: {error}");
        let addresses = text
            .lines()
            .filter_map(|line| line.split_whitespace().next());
        let mut addresses: Vec<String> = addresses.map(str::to_owned).collect();
        addresses.sort();
        addresses.dedup();
        addresses
    }
}
