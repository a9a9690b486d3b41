//! Server cookies (RFC 9018): a client that shows one again has been heard at its address before.

use std::net::IpAddr;

/// Bytes of a client's cookie (RFC 7873, 4.1).
const CLIENT: usize = 8;
/// Bytes of a client's and our cookie.
const BOTH: usize = 24;

/// A client's cookie and ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cookie(pub [u8; BOTH]);

/// What cookies are made with; drawn anew by each process.
#[derive(Clone, Copy)]
pub(crate) struct Secret(pub [u8; 16]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Makes cookies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Jar {
    secret: Secret,
}

impl Jar {
    pub(crate) fn new(secret: Secret) -> Self {
        Jar { secret }
    }

    /// The cookie to send back for what a client sent; `now` in seconds of the epoch. `None` when what it sent is none.
    ///
    /// Nothing depends on a client's having shown one: whoever has none is answered all the same, so that one which is
    /// old or somebody else's is simply replaced.
    pub(crate) fn cookie(&self, sent: &[u8], client: IpAddr, now: u64) -> Option<Cookie> {
        let mine: &[u8; CLIENT] = sent.first_chunk()?;
        Some(self.bake(mine, client, now as u32))
    }

    fn bake(&self, client_cookie: &[u8; CLIENT], client: IpAddr, now: u32) -> Cookie {
        const VERSION: u8 = 1;
        let mut cookie = [0; BOTH];
        cookie[..CLIENT].copy_from_slice(client_cookie);
        cookie[CLIENT] = VERSION;
        cookie[12..16].copy_from_slice(&now.to_be_bytes());
        let mut input = [0; 32];
        input[..16].copy_from_slice(&cookie[..16]);
        let input = match client.to_canonical() {
            IpAddr::V4(v4) => {
                input[16..20].copy_from_slice(&v4.octets());
                &input[..20]
            }
            IpAddr::V6(v6) => {
                input[16..].copy_from_slice(&v6.octets());
                &input[..]
            }
        };
        cookie[16..].copy_from_slice(&siphash(&self.secret.0, input).to_le_bytes());
        Cookie(cookie)
    }
}

/// SipHash-2-4.
fn siphash(key: &[u8; 16], bytes: &[u8]) -> u64 {
    let (k0, k1) = key.split_at(8);
    let word = |bytes: &[u8]| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    };
    let (k0, k1) = (word(k0), word(k1));
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    let (words, rest) = bytes.as_chunks::<8>();
    let last = word(rest) | (bytes.len() as u64) << 56;
    for word in words
        .iter()
        .map(|word| u64::from_le_bytes(*word))
        .chain([last])
    {
        v[3] ^= word;
        rounds(&mut v, 2);
        v[0] ^= word;
    }
    v[2] ^= 0xff;
    rounds(&mut v, 4);
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

fn rounds(v: &mut [u64; 4], count: usize) {
    for _ in 0..count {
        v[0] = v[0].wrapping_add(v[1]);
        v[1] = v[1].rotate_left(13) ^ v[0];
        v[0] = v[0].rotate_left(32);
        v[2] = v[2].wrapping_add(v[3]);
        v[3] = v[3].rotate_left(16) ^ v[2];
        v[0] = v[0].wrapping_add(v[3]);
        v[3] = v[3].rotate_left(21) ^ v[0];
        v[2] = v[2].wrapping_add(v[1]);
        v[1] = v[1].rotate_left(17) ^ v[2];
        v[2] = v[2].rotate_left(32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9018, appendix A.
    #[test]
    fn the_cookies_of_the_rfc() {
        let hex = |text: &str| -> Vec<u8> {
            (0..text.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
                .collect()
        };
        for (secret, client, address, now, cookie) in [
            (
                "e5e973e5a6b2a43f48e7dc849e37bfcf",
                "2464c4abcf10c957",
                "198.51.100.100",
                1_559_731_985,
                "2464c4abcf10c957010000005cf79f111f8130c3eee29480",
            ),
            (
                "445536bcd2513298075a5d379663c962",
                "22681ab97d52c298",
                "2001:db8:220:1:59de:d0f4:8769:82b8",
                1_559_741_961,
                "22681ab97d52c298010000005cf7c609a6bb79d16625507a",
            ),
        ] {
            let jar = Jar::new(Secret(hex(secret).try_into().unwrap()));
            let made = jar.cookie(&hex(client), address.parse().unwrap(), now);
            assert_eq!(made.unwrap().0.to_vec(), hex(cookie));
        }
    }
}
