//! What can go wrong between the redirect and the kernel.

use std::io;
use std::net::IpAddr;

/// Why the redirect could not be put in place, changed or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedirectError {
    /// The kernel has no such netlink family, or the process may not open it.
    #[error("cannot open a {socket} socket (Linux with nf_tables is needed)")]
    Socket {
        /// The netlink family.
        socket: &'static str,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },

    /// `EPERM`.
    #[error("cannot {step}: needs CAP_NET_ADMIN (run as root or grant the capability)")]
    NotPermitted {
        /// What was to be done.
        step: String,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },

    /// The kernel does not know what was asked for.
    #[error(
        "cannot {step}: not supported by this kernel{} \
         (needed: Linux 5.10 or later with nf_tables, nft_ct, nft_nat and nft_reject_inet, and \
         IPv6 if there is an IPv6 range)",
        explained(.detail)
    )]
    Unsupported {
        /// What was to be done.
        step: String,
        /// The kernel's own explanation, where it gives one.
        detail: Option<String>,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },

    /// Any other refusal.
    #[error("cannot {step}{}", explained(.detail))]
    Refused {
        /// What was to be done.
        step: String,
        /// The kernel's own explanation, where it gives one.
        detail: Option<String>,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },

    /// A range that no address family has, or that would take every address of its family.
    #[error("VIP range {address}/{prefix} is not usable (take a prefix of 1 to {longest} bits)")]
    Range {
        /// The address of the range.
        address: IpAddr,
        /// Its prefix, in bits.
        prefix: u8,
        /// The longest prefix of the address family.
        longest: u8,
    },

    /// A table name that nf_tables or its tools would not take.
    #[error(
        "nftables table name {0:?} is not usable \
         (take 1 to 64 ASCII letters, digits, '-' or '_', starting with a letter)"
    )]
    Table(String),

    /// Another process has the table of this name, in this network namespace.
    #[error(
        "the nftables table inet {table} is in use by another heddle{} (one node per host: end that \
         one first, or run this one in a network namespace of its own)",
        by(*.holder)
    )]
    InUse {
        /// The table's name.
        table: String,
        /// The other process, where it can be seen from here.
        holder: Option<i32>,
    },

    /// Whether another process has the table could not be found out.
    #[error("cannot make sure that no other heddle uses the nftables table inet {table}")]
    Lock {
        /// The table's name.
        table: String,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },

    /// Somebody else's table has the name. It is left alone.
    #[error(
        "an nftables table inet {0} is there that heddle did not make (rename it, or delete it by \
         `nft delete table inet {0}` if nobody needs it)"
    )]
    Foreign(String),

    /// Port 0 names no listener.
    #[error("the redirect port is 0 (take the port that the listener is bound to)")]
    Port,
}

impl RedirectError {
    pub(super) fn refused(step: String, source: io::Error, detail: Option<String>) -> Self {
        match source.raw_os_error() {
            Some(libc::EPERM) => Self::NotPermitted { step, source },
            Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => {
                Self::Unsupported {
                    step,
                    detail,
                    source,
                }
            }
            _ => Self::Refused {
                step,
                detail,
                source,
            },
        }
    }

    /// In a batch that makes all it refers to, only a module of the kernel can be missing.
    pub(super) fn missing_means_unsupported(self) -> Self {
        match self {
            Self::Refused {
                step,
                detail,
                source,
            } if source.raw_os_error() == Some(libc::ENOENT) => Self::Unsupported {
                step,
                detail,
                source,
            },
            other => other,
        }
    }

    /// The errno behind a refusal.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Socket { source, .. }
            | Self::NotPermitted { source, .. }
            | Self::Unsupported { source, .. }
            | Self::Refused { source, .. }
            | Self::Lock { source, .. } => source.raw_os_error(),
            Self::Range { .. }
            | Self::Table(_)
            | Self::InUse { .. }
            | Self::Foreign(_)
            | Self::Port => None,
        }
    }
}

fn explained(detail: &Option<String>) -> String {
    detail
        .as_ref()
        .map(|text| format!(": {text}"))
        .unwrap_or_default()
}

fn by(holder: Option<i32>) -> String {
    holder
        .map(|pid| format!(", process {pid}"))
        .unwrap_or_default()
}
