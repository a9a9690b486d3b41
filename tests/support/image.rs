//! The image that the containers of the tests run: our own static binary and nothing else. There may be no
//! registry to pull from, and none is needed.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The image as a tar file for `docker import`: `/heddle` alone. Made once for each build of the binary, and
/// shared by all tests of that build.
pub fn tar() -> &'static Path {
    static TAR: OnceLock<PathBuf> = OnceLock::new();
    TAR.get_or_init(make)
}

fn make() -> PathBuf {
    let binary = Path::new(env!("CARGO_BIN_EXE_heddle"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let built = fs::metadata(binary).expect("cannot see the binary that the tests run");
    let name = format!(
        "image-{}-{}-{}.tar",
        built.len(),
        built.mtime(),
        built.mtime_nsec()
    );
    let file = folder.join(&name);
    if file.exists() {
        return file;
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let other = entry.file_name();
        if other.to_string_lossy().starts_with("image-")
            && other.to_string_lossy().ends_with(".tar")
        {
            let _ = fs::remove_file(entry.path());
        }
    }
    let content = stripped(binary, folder);
    // Tests of several processes may make it at once: each writes its own file, the last to be named stays.
    let mut temporary = tempfile::NamedTempFile::new_in(folder).expect("cannot write the image");
    temporary
        .write_all(&header("heddle", content.len()))
        .expect("cannot write the image");
    temporary
        .write_all(&content)
        .expect("cannot write the image");
    // Content is padded to blocks of 512 bytes; two empty blocks end the archive.
    let padding = content.len().next_multiple_of(512) - content.len();
    temporary
        .write_all(&vec![0; padding + 1024])
        .expect("cannot write the image");
    temporary.persist(&file).expect("cannot name the image");
    file
}

/// The binary without its debug information, which is most of it; as it is where `strip` is not installed.
fn stripped(binary: &Path, folder: &Path) -> Vec<u8> {
    let smaller = tempfile::NamedTempFile::new_in(folder)
        .expect("cannot write the image")
        .into_temp_path();
    let status = Command::new("strip")
        .arg("-o")
        .arg(&*smaller)
        .arg(binary)
        .status();
    let source = if status.is_ok_and(|status| status.success()) {
        &*smaller
    } else {
        binary
    };
    fs::read(source).expect("cannot read the binary that the tests run")
}

/// The header block of an executable file (POSIX.1-1988 ustar).
fn header(name: &str, length: usize) -> [u8; 512] {
    let mut block = [0u8; 512];
    let mut field = |offset: usize, value: &str| {
        block[offset..offset + value.len()].copy_from_slice(value.as_bytes());
    };
    field(0, name);
    field(100, "0000755\0");
    field(108, "0000000\0");
    field(116, "0000000\0");
    field(124, &format!("{length:011o}\0"));
    field(136, "00000000000\0");
    // The checksum is that of the block with spaces in the checksum's place.
    field(148, "        ");
    field(156, "0");
    field(257, "ustar\0");
    field(263, "00");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}
