//! The data plane in one process: snapshots made by hand, real sockets, backends of all manners.

mod chaos;
mod endpoint_counts;
mod engine;
mod grpc;
mod h2_errors;
mod h2_rules;
mod headers;
mod hostile_h2;
mod http1;
mod http2;
mod lifecycle;
#[allow(dead_code, reason = "shared with the redirect's own tests")]
#[path = "../redirect/netns.rs"]
mod netns;
mod redirected;
mod retries;
mod spread;
mod streaming;
mod support;
mod tcp;
mod tls;
mod tls_upstream;
mod upgrade;
