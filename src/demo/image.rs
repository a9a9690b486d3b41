//! The image of the demo's containers: this very binary and nothing else, as a tar archive that Docker imports.

use std::fs::File;
use std::io::Read as _;

use bytes::Bytes;
use futures::Stream;

use crate::cli::Failure;

const CHUNK: usize = 256 << 10;
const BLOCK: u64 = 512;

/// The archive, piece by piece: a debug build's is large.
pub fn tar() -> Result<impl Stream<Item = std::io::Result<Bytes>> + Send + 'static, Failure> {
    let failed = |e: std::io::Error| Failure::Failed(format!("demo: this binary: {e}"));
    let path = std::env::current_exe().map_err(failed)?;
    let mut file = File::open(&path).map_err(failed)?;
    if is_dynamic(&mut file).map_err(failed)? {
        return Err(Failure::Failed(format!(
            "demo --docker: {} is dynamically linked, so it can't run in an image that holds nothing else \
             (build heddle with its own .cargo/config.toml, which links statically)",
            path.display()
        )));
    }
    let file = File::open(&path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    // Content is padded to whole blocks; two empty blocks end the archive.
    let padding = length.next_multiple_of(BLOCK) - length + 2 * BLOCK;
    let padding = vec![0; usize::try_from(padding).unwrap_or(0)];
    let head = futures::stream::iter([Ok(Bytes::from(header("heddle", length).to_vec()))]);
    let content = futures::stream::iter(Chunks(file.take(length)));
    let end = futures::stream::iter([Ok(Bytes::from(padding))]);
    Ok(futures::StreamExt::chain(
        futures::StreamExt::chain(head, content),
        end,
    ))
}

/// A file in pieces. Reading blocks, for as long as a page cache takes: the binary has just been started.
struct Chunks(std::io::Take<File>);

impl Iterator for Chunks {
    type Item = std::io::Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut chunk = vec![0; CHUNK];
        match self.0.read(&mut chunk) {
            Ok(0) => None,
            Ok(n) => {
                chunk.truncate(n);
                Some(Ok(chunk.into()))
            }
            Err(e) => Some(Err(e)),
        }
    }
}

/// The header of an executable file (POSIX.1-1988 ustar).
fn header(name: &str, length: u64) -> [u8; 512] {
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

/// Whether an ELF file names an interpreter, which an empty image lacks (gABI, program header `PT_INTERP`).
fn is_dynamic(file: &mut File) -> std::io::Result<bool> {
    const PT_INTERP: u32 = 3;
    let mut start = vec![0; 4096];
    let n = file.read(&mut start)?;
    start.truncate(n);
    let number = |at: usize, bytes: usize| -> Option<usize> {
        let field = start.get(at..at + bytes)?;
        Some(
            field
                .iter()
                .rev()
                .fold(0, |sum, b| sum << 8 | usize::from(*b)),
        )
    };
    let headers = || Some((number(32, 8)?, number(54, 2)?, number(56, 2)?));
    let Some((offset, size, count)) = headers() else {
        return Ok(false);
    };
    Ok((0..count).any(|i| number(offset + i * size, 4) == Some(PT_INTERP as usize)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_an_interpreter_is_dynamic() {
        let mut own = File::open("/proc/self/exe").unwrap();
        let built_static = cfg!(target_feature = "crt-static");
        assert_eq!(is_dynamic(&mut own).unwrap(), !built_static);
        let mut shell = File::open("/bin/sh").unwrap();
        assert!(is_dynamic(&mut shell).unwrap());
    }
}
