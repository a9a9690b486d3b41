//! The OPT record of our responses (RFC 6891), with who we are (RFC 5001), cookies (RFC 7873, RFC 9018) and padding
//! (RFC 7830).

mod cookie;
pub(crate) mod padding;

pub(crate) use cookie::{Cookie, Jar, Secret};

use crate::response::MAX_DATAGRAM;

/// An OPT record without options (RFC 6891, 6.1.2).
const BARE: usize = 11;
/// Code and length before an option's data.
const OPTION: usize = 4;

const TYPE_OPT: [u8; 2] = [0, 41];
const OPTION_NSID: [u8; 2] = [0, 3];
const OPTION_COOKIE: [u8; 2] = [0, 10];
const DNSSEC_OK: u8 = 0x80;

/// What our OPT record says. All clients that ask alike get the same bytes from every path of the code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Opt<'a> {
    /// As the client set it (RFC 3225, 3).
    pub dnssec_ok: bool,
    /// Who answers, for clients that ask; less than 64 KiB.
    pub nsid: Option<&'a [u8]>,
    /// For clients that sent one.
    pub cookie: Option<Cookie>,
}

impl Opt<'_> {
    /// Bytes that it takes.
    pub(crate) fn length(&self) -> usize {
        let nsid = self.nsid.map_or(0, |nsid| OPTION + nsid.len());
        let cookie = self.cookie.map_or(0, |cookie| OPTION + cookie.0.len());
        BARE + nsid + cookie
    }

    /// Fills `out`, which is as long as [`Opt::length`]. `code` is the upper part of the response's code.
    pub(crate) fn write(&self, out: &mut [u8], code: u8) {
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        let options = u16::try_from(self.length() - BARE).unwrap_or(u16::MAX);
        put(&[0]);
        put(&TYPE_OPT);
        put(&MAX_DATAGRAM.to_be_bytes());
        put(&[code, 0, if self.dnssec_ok { DNSSEC_OK } else { 0 }, 0]);
        put(&options.to_be_bytes());
        let nsid = self.nsid.map(|nsid| (OPTION_NSID, nsid));
        let cookie = self.cookie.as_ref().map(|c| (OPTION_COOKIE, &c.0[..]));
        for (option, data) in nsid.into_iter().chain(cookie) {
            put(&option);
            put(&u16::try_from(data.len()).unwrap_or(u16::MAX).to_be_bytes());
            put(data);
        }
    }

    /// The same as a vector.
    pub(crate) fn to_vec(self, code: u8) -> Vec<u8> {
        let mut bytes = vec![0; self.length()];
        self.write(&mut bytes, code);
        bytes
    }
}
