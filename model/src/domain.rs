//! Domain names as users write them, for names outside the mesh's own scheme.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::name::{Clip, MAX_NAME_BYTES, ParseVisitor};

/// The longest name in bytes without the dot at its end (RFC 1035, section 2.3.4).
const MAX_DOMAIN_BYTES: usize = 253;

/// Why a text is no [`DomainName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is not a domain name: {reason}", Clip(.value))]
pub struct DomainNameError {
    value: String,
    reason: &'static str,
}

/// A domain name of at least two labels, in lower case and without a dot at its end: labels of letters, digits, `-` and
/// `_`, each 1 to 63 bytes long, 253 bytes in all.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainName(Arc<str>);

impl DomainName {
    /// The name as a string slice.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DomainName {
    type Err = DomainNameError;

    fn from_str(value: &str) -> Result<Self, Self::Err> {
        let fail = |reason| {
            Err(DomainNameError {
                value: value.to_owned(),
                reason,
            })
        };
        let name = value.strip_suffix('.').unwrap_or(value);
        if name.len() > MAX_DOMAIN_BYTES {
            return fail("more than 253 bytes");
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        for label in name.split('.') {
            if label.is_empty() {
                return fail("it has an empty label");
            }
            if label.len() > MAX_NAME_BYTES {
                return fail("a label has more than 63 bytes");
            }
            if !label.chars().all(allowed) {
                return fail("only letters, digits, '-' and '_' are allowed between its dots");
            }
        }
        if !name.contains('.') {
            return fail("it has one label only, and would stand for a whole top-level domain");
        }
        if name.parse::<std::net::Ipv4Addr>().is_ok() {
            return fail("it is an address");
        }
        Ok(DomainName(name.to_ascii_lowercase().into()))
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl Serialize for DomainName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for DomainName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(ParseVisitor::new("a domain name (a string)"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_kept_in_lower_case_without_its_dot() {
        for (text, name) in [
            ("db.Corp.example", "db.corp.example"),
            ("_ldap._tcp.corp.example.", "_ldap._tcp.corp.example"),
        ] {
            assert_eq!(text.parse::<DomainName>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn what_is_no_name_is_refused_with_the_reason() {
        let long = format!("{}.example", "a".repeat(64));
        let longer = format!("{}example", "a.".repeat(130));
        for (text, reason) in [
            ("", "it has an empty label"),
            ("a..b", "it has an empty label"),
            ("example", "it has one label only"),
            ("192.0.2.1", "it is an address"),
            ("a b.example", "only letters"),
            (&long, "more than 63 bytes"),
            (&longer, "more than 253 bytes"),
        ] {
            let error = text.parse::<DomainName>().unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
