//! Which nftables tables there are, asked over netlink: the program `nft` need not be installed.

use std::io;
use std::io::Read as _;

use socket2::{Domain, Protocol, Socket, Type};

/// `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_GETTABLE` (linux/netfilter/nfnetlink.h, nf_tables.h).
const GET_TABLE: u16 = 10 << 8 | 1;
const NEW_TABLE: u16 = 10 << 8;
const TABLE_NAME: u16 = 1;
const ERROR: u16 = libc::NLMSG_ERROR as u16;
const DONE: u16 = libc::NLMSG_DONE as u16;
/// Flags of a request that lists.
const DUMP: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
const HEADER: usize = 16;

/// The names of all tables of the family `inet`.
pub fn tables() -> io::Result<Vec<String>> {
    let mut socket = Socket::new(
        Domain::from(libc::AF_NETLINK),
        Type::RAW.cloexec(),
        Some(Protocol::from(libc::NETLINK_NETFILTER)),
    )?;
    socket.set_read_timeout(Some(std::time::Duration::from_secs(5)))?;
    let mut request = Vec::new();
    request.extend(20u32.to_ne_bytes());
    request.extend(GET_TABLE.to_ne_bytes());
    request.extend(DUMP.to_ne_bytes());
    request.extend(1u32.to_ne_bytes());
    request.extend(0u32.to_ne_bytes());
    let inet = libc::NFPROTO_INET as u8;
    request.extend([inet, 0, 0, 0]);
    socket.send(&request)?;
    let mut names = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = socket.read(&mut buffer)?;
        if !take(&buffer[..n], &mut names)? {
            return Ok(names);
        }
    }
}

/// Takes the names out of one answer; whether another follows.
fn take(mut answer: &[u8], names: &mut Vec<String>) -> io::Result<bool> {
    let word = |b: &[u8], at: usize| Some(u32::from_ne_bytes(b.get(at..at + 4)?.try_into().ok()?));
    while answer.len() >= HEADER {
        let length = word(answer, 0).unwrap_or(0) as usize;
        if length < HEADER || length > answer.len() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let kind = u16::from_ne_bytes([answer[4], answer[5]]);
        let body = &answer[HEADER..length];
        match kind {
            DONE => return Ok(false),
            ERROR => {
                let code = word(body, 0).unwrap_or(0).cast_signed();
                return Err(io::Error::from_raw_os_error(-code));
            }
            NEW_TABLE => names.extend(name(body)),
            _ => {}
        }
        answer = &answer[length.next_multiple_of(4).min(answer.len())..];
    }
    Ok(true)
}

/// The name among a table's attributes, which follow four bytes of `nfgenmsg`.
fn name(body: &[u8]) -> Option<String> {
    let mut rest = body.get(4..)?;
    while let [a, b, c, d, ..] = *rest {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = rest.get(4..length)?;
        if u16::from_ne_bytes([c, d]) == TABLE_NAME {
            let text = value.split(|b| *b == 0).next()?;
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER + body.len()).unwrap();
        let mut all = length.to_ne_bytes().to_vec();
        all.extend(kind.to_ne_bytes());
        all.extend([0; 10]);
        all.extend(body);
        all
    }

    #[test]
    fn names_are_read_to_the_end_of_the_list() {
        let mut body = vec![1, 0, 0, 0];
        body.extend([8, 0, 2, 0, 0, 0, 0, 0]);
        body.extend([11, 0, 1, 0]);
        body.extend(b"heddle\0\0");
        let mut names = Vec::new();
        let mut answer = message(NEW_TABLE, &body);
        assert!(take(&answer, &mut names).unwrap());
        answer = message(DONE, &[0; 4]);
        assert!(!take(&answer, &mut names).unwrap());
        assert_eq!(names, ["heddle"]);
    }

    #[test]
    fn refusals_and_nonsense_are_errors() {
        let refused = message(ERROR, &(-libc::EPERM).to_ne_bytes());
        let error = take(&refused, &mut Vec::new()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        let cut = &message(NEW_TABLE, &[0; 8])[..20];
        assert!(take(cut, &mut Vec::new()).is_err());
        assert_eq!(name(&[1, 0, 0, 0, 200, 0, 1, 0]), None);
    }
}
