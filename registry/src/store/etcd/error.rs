//! What the errors of etcd and of the transport to it mean to a caller.

use std::error::Error;
use std::time::Duration;

use tonic::{Code, ConnectError, Status};

use super::cluster::MAX_ANSWER_BYTES;
use crate::store::{LeaseId, StoreError};

/// Sorts an error of the client library. etcd's messages are part of its API: its own Go client
/// tells its errors apart by them (`etcdserver/api/v3rpc/rpctypes/error.go`).
pub(super) fn classify(address: &str, deadline: Duration, error: etcd_client::Error) -> StoreError {
    match error {
        etcd_client::Error::GRpcStatus(status) => from_status(address, deadline, status),
        other => StoreError::Unavailable {
            address: address.to_owned(),
            sent: true,
            source: Box::new(other),
        },
    }
}

pub(super) fn from_status(address: &str, deadline: Duration, status: Status) -> StoreError {
    let address = address.to_owned();
    let message = status.message();
    match status.code() {
        Code::OutOfRange if message.contains("compacted") => StoreError::Compacted { revision: 0 },
        Code::OutOfRange | Code::ResourceExhausted if message.contains("message length") => {
            StoreError::TooLarge {
                what: "bytes in one answer",
                key: String::new(),
                size: 0,
                limit: MAX_ANSWER_BYTES,
            }
        }
        Code::InvalidArgument | Code::ResourceExhausted
            if message.contains("request is too large")
                || message.contains("too many operations")
                || message.contains("larger than max") =>
        {
            StoreError::TooLarge {
                what: "bytes or operations in one request, says etcd",
                key: String::new(),
                size: 0,
                limit: 0,
            }
        }
        Code::ResourceExhausted if message.contains("space exceeded") => StoreError::NoSpace {
            address,
            source: words(&status).into(),
        },
        // etcd's own overload protection, before the request is looked at.
        Code::ResourceExhausted if message.contains("too many requests") => {
            StoreError::Unavailable {
                address,
                sent: false,
                source: words(&status).into(),
            }
        }
        Code::NotFound if message.contains("lease not found") => {
            StoreError::LeaseNotFound { id: LeaseId(0) }
        }
        Code::PermissionDenied | Code::Unauthenticated => StoreError::Denied {
            address,
            source: words(&status).into(),
        },
        Code::InvalidArgument
            if message.contains("user name is empty")
                || message.contains("authentication failed")
                || message.contains("revision of auth store is old") =>
        {
            StoreError::Denied {
                address,
                source: words(&status).into(),
            }
        }
        Code::DeadlineExceeded => StoreError::DeadlineExceeded { address, deadline },
        // Said before the request is looked at, because calls ask for a leader (`hasleader`).
        Code::Unavailable if message == "etcdserver: no leader" => StoreError::Unavailable {
            address,
            sent: false,
            source: words(&status).into(),
        },
        // What a broken connection looks like, at whatever moment it broke, besides etcd's own
        // "no leader", "leader changed", "request timed out" and "server stopped".
        Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Internal | Code::Aborted => {
            let sent = !never_connected(&status);
            StoreError::Unavailable {
                address,
                sent,
                source: words(&status).into(),
            }
        }
        _ => StoreError::Rejected {
            address,
            source: words(&status).into(),
        },
    }
}

/// Whether etcd refused the call for its token, before doing anything: after another log-in it may be made again.
pub(super) fn is_stale_token(error: &etcd_client::Error) -> bool {
    let etcd_client::Error::GRpcStatus(status) = error else {
        return false;
    };
    let message = status.message();
    status.code() == Code::Unauthenticated
        || message.contains("invalid auth token")
        || message.contains("user name is empty")
        || message.contains("revision of auth store is old")
}

/// What a person needs of a status: the cause at its root, where the transport gives one, else etcd's own message. The
/// status itself prints every level of the transport, some of them twice.
fn words(status: &Status) -> String {
    let mut root = None;
    let mut cause = status.source();
    while let Some(error) = cause {
        root = Some(error.to_string());
        cause = error.source();
    }
    root.unwrap_or_else(|| match status.message() {
        "" => status.code().description().to_owned(),
        message => message.to_owned(),
    })
}

/// Whether the call failed because no connection could be made, so that nothing was sent.
fn never_connected(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Names the lease that was asked for, which etcd's message does not.
pub(super) fn with_lease(error: StoreError, lease: Option<LeaseId>) -> StoreError {
    match (error, lease) {
        (StoreError::LeaseNotFound { .. }, Some(id)) => StoreError::LeaseNotFound { id },
        (error, _) => error,
    }
}
