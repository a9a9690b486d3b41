//! What was done with resources, or why nothing was.

use std::net::IpAddr;

use model::name::ServiceKey;
use model::net::IpNet;
use model::service::ManagedBy;
use serde::{Deserialize, Serialize};

use super::TRIES;
use crate::record::RecordError;
use crate::store::StoreError;

/// What was done with a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is new.
    Created,
    /// It was another one before.
    Configured,
    /// It was the same already; nothing was written.
    Unchanged,
    /// It is gone.
    Deleted,
}

impl Action {
    /// As the command line prints it.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Created => "created",
            Action::Configured => "configured",
            Action::Unchanged => "unchanged",
            Action::Deleted => "deleted",
        }
    }
}

/// What was done with which resource.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// `Service` or `Endpoint`.
    pub kind: String,
    /// `namespace/name`.
    pub key: ServiceKey,
    /// What was done.
    pub action: Action,
    /// The virtual IPs that a service got with this write.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vips: Vec<IpAddr>,
    /// The resource before, as JSON; for `--diff`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<serde_json::Value>,
    /// The resource after, as JSON; for `--diff`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<serde_json::Value>,
    /// What the user should know although it worked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// Why resources were not written. Nothing was.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The store failed.
    #[error("registry can't be read or written")]
    Store(#[from] StoreError),
    /// The manifest names an older `resourceVersion` than the registry has.
    #[error("{kind} {key} was changed meanwhile: it has resourceVersion {current}, not {given}")]
    Stale {
        /// `Service` or `Endpoint`.
        kind: &'static str,
        /// `namespace/name`.
        key: ServiceKey,
        /// What the manifest says.
        given: i64,
        /// What the registry has; 0 when it has none.
        current: i64,
    },
    /// Somebody else owns it.
    #[error("{kind} {key} is managed by {owner}: {mend}")]
    Owned {
        /// `Service` or `Endpoint`.
        kind: &'static str,
        /// `namespace/name`.
        key: ServiceKey,
        /// Who owns it.
        owner: ManagedBy,
        /// What to do instead.
        mend: &'static str,
    },
    /// It is not there.
    #[error("{kind} {key} does not exist")]
    NotFound {
        /// `Service` or `Endpoint`.
        kind: &'static str,
        /// `namespace/name`.
        key: ServiceKey,
    },
    /// More than one transaction can hold.
    #[error(
        "{count} resources at once are too many to be written all or nothing: apply at most {limit} at a time"
    )]
    TooMany {
        /// How many there are.
        count: usize,
        /// How many fit surely.
        limit: usize,
    },
    /// The record that is there can't be read, so it is not overwritten.
    #[error(
        "{kind} {key} is in the registry in a form that this version can't read: delete it first"
    )]
    Unreadable {
        /// `Service` or `Endpoint`.
        kind: &'static str,
        /// `namespace/name`.
        key: ServiceKey,
        /// Why.
        #[source]
        source: RecordError,
    },
    /// The virtual IP that a manifest asks for is another service's.
    #[error(
        "Service {key}: spec.vips asks for {ip}, which {holder} has: ask for another, or move that service first by a \
         spec.vips of its own"
    )]
    VipHeld {
        /// Which service asks.
        key: ServiceKey,
        /// For what.
        ip: IpAddr,
        /// Who has it: `service shop/web`.
        holder: String,
    },
    /// The virtual IP that a manifest asks for can't be any service's.
    #[error("Service {key}: spec.vips asks for {ip}: {reason}")]
    VipUnusable {
        /// Which service asks.
        key: ServiceKey,
        /// For what.
        ip: IpAddr,
        /// Why not.
        reason: String,
    },
    /// Others wrote at the same time, again and again.
    #[error("others keep writing the same resources: gave up after {TRIES} tries")]
    Contended,
}

/// What to do beside writing.
#[derive(Clone, Debug)]
pub struct ApplyOptions {
    /// Who writes.
    pub manager: ManagedBy,
    /// Where virtual IPs come from.
    pub ranges: Vec<IpNet>,
    /// Say what would be done, and write nothing.
    pub dry_run: bool,
}
