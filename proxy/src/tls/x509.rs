//! What is read of a certificate (RFC 5280) beyond what the TLS library tells: until when it is valid, and for which
//! names. Both are read of certificates that the operator named; nothing here decides whom to believe.

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// Seconds since 1970.
    pub(super) not_after: i64,
    /// Its DNS names (subjectAltName), in lower case, `*.` kept.
    pub(super) names: Vec<String>,
}

const SEQUENCE: u8 = 0x30;
const OID: u8 = 0x06;
const OCTET_STRING: u8 = 0x04;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0] EXPLICIT`: the certificate's version.
const VERSION: u8 = 0xa0;
/// `[3] EXPLICIT`: the certificate's extensions.
const EXTENSIONS: u8 = 0xa3;
/// `[2] IMPLICIT IA5String` of a GeneralName.
const DNS_NAME: u8 = 0x82;
/// 2.5.29.17
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];

/// Reads a certificate in DER; `None` when it isn't one.
pub(super) fn facts(certificate: &[u8]) -> Option<Facts> {
    let mut certificate = Der(certificate).expect(SEQUENCE)?;
    let mut tbs = certificate.expect(SEQUENCE)?;
    tbs.optional(VERSION);
    // Serial number, signature algorithm, issuer.
    for _ in 0..3 {
        tbs.next()?;
    }
    let mut validity = tbs.expect(SEQUENCE)?;
    validity.next()?;
    let (tag, time) = validity.next()?;
    let not_after = seconds(tag, time)?;
    let mut names = Vec::new();
    while let Some((tag, content)) = tbs.next() {
        if tag == EXTENSIONS {
            names = dns_names(Der(content).expect(SEQUENCE)?)?;
        }
    }
    Some(Facts { not_after, names })
}

fn dns_names(mut extensions: Der<'_>) -> Option<Vec<String>> {
    let mut names = Vec::new();
    while let Some((_, extension)) = extensions.next() {
        let mut extension = Der(extension);
        if extension.expect(OID)?.0 != SUBJECT_ALT_NAME {
            continue;
        }
        // `critical` may stand before the value.
        let value = std::iter::from_fn(|| extension.next()).find(|(tag, _)| *tag == OCTET_STRING);
        let mut all = Der(value?.1).expect(SEQUENCE)?;
        while let Some((tag, name)) = all.next() {
            if tag == DNS_NAME {
                names.push(std::str::from_utf8(name).ok()?.to_ascii_lowercase());
            }
        }
    }
    Some(names)
}

/// What is left of a sequence of values (X.690, 8.1).
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next value: its tag and what it holds.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let [tag, length, rest @ ..] = self.0 else {
            return None;
        };
        let (length, rest) = match length {
            0..=0x7f => (usize::from(*length), rest),
            // Up to four bytes of length: certificates are no larger.
            0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
                let length = bytes.iter().fold(0, |n, byte| n << 8 | usize::from(*byte));
                (length, rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((*tag, content))
    }

    fn expect(&mut self, wanted: u8) -> Option<Der<'a>> {
        let (tag, content) = self.next()?;
        (tag == wanted).then_some(Der(content))
    }

    fn optional(&mut self, wanted: u8) {
        if self.0.first() == Some(&wanted) {
            self.next();
        }
    }
}

/// A UTCTime or GeneralizedTime as certificates have them: to the second, in UTC (RFC 5280, 4.1.2.5).
fn seconds(tag: u8, time: &[u8]) -> Option<i64> {
    let digits = match tag {
        UTC_TIME => 12,
        GENERALIZED_TIME => 14,
        _ => return None,
    };
    let (time, zone) = time.split_at_checked(digits)?;
    if zone != b"Z" || !time.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = |digits: &[u8]| digits.iter().fold(0, |n, d| n * 10 + i64::from(d - b'0'));
    let (year, rest) = time.split_at(digits - 10);
    let year = match (tag, number(year)) {
        (UTC_TIME, year @ 0..50) => 2000 + year,
        (UTC_TIME, year) => 1900 + year,
        (_, year) => year,
    };
    let [month, day, hour, minute, second] =
        std::array::from_fn(|at| number(&rest[2 * at..2 * at + 2]));
    let valid = (1..=12).contains(&month) && (1..=31).contains(&day);
    let valid = valid && hour < 24 && minute < 60 && second <= 60;
    valid.then(|| ((days(year, month, day) * 24 + hour) * 60 + minute) * 60 + second)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar. Years are counted from March, so that a leap day is a
/// year's last, and months of 30.6 days then fall on whole ones.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    year * 365 + leap_days + day_of_year - 719_468
}

#[cfg(test)]
mod tests;
