//! What the DNS server counts.

use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use prometheus::{Histogram, HistogramOpts, IntCounterVec, Opts, Registry};

/// From an answer out of the snapshot to an upstream's time-out, in seconds.
const BUCKETS: [f64; 12] = [
    0.000_05, 0.000_1, 0.000_25, 0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
];

/// The families of this crate. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Metrics {
    queries: IntCounterVec,
    duration: Histogram,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let queries = Opts::new(
            "heddle_dns_queries_total",
            "DNS queries answered, by the type asked for and the code of the answer",
        );
        let duration = HistogramOpts::new(
            "heddle_dns_query_duration_seconds",
            "Time from reading a DNS query to having its answer, forwarding included",
        )
        .buckets(BUCKETS.to_vec());
        Metrics {
            queries: IntCounterVec::new(queries, &["type", "rcode"])
                .expect("the name and labels are valid"),
            duration: Histogram::with_opts(duration).expect("the name and buckets are valid"),
        }
    }

    /// Hands the families to a registry.
    ///
    /// # Errors
    /// [`prometheus::Error::AlreadyReg`] when another server's were handed to it before.
    pub fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(self.queries.clone()))?;
        registry.register(Box::new(self.duration.clone()))
    }

    /// How many queries of a type got a code; both as in the labels.
    #[cfg(test)]
    pub(crate) fn queries(&self, kind: &str, code: &str) -> u64 {
        self.queries.with_label_values(&[kind, code]).get()
    }

    pub(crate) fn answered(&self, kind: Option<RecordType>, code: ResponseCode, took: Duration) {
        self.queries
            .with_label_values(&[type_label(kind), code_label(code)])
            .inc();
        self.duration.observe(took.as_secs_f64());
    }
}

/// One of a known list, so that a client can't make series.
fn type_label(kind: Option<RecordType>) -> &'static str {
    match kind {
        Some(RecordType::A) => "A",
        Some(RecordType::AAAA) => "AAAA",
        Some(RecordType::ANY) => "ANY",
        Some(RecordType::CNAME) => "CNAME",
        Some(RecordType::DNSKEY) => "DNSKEY",
        Some(RecordType::DS) => "DS",
        Some(RecordType::HTTPS) => "HTTPS",
        Some(RecordType::MX) => "MX",
        Some(RecordType::NAPTR) => "NAPTR",
        Some(RecordType::NS) => "NS",
        Some(RecordType::PTR) => "PTR",
        Some(RecordType::SOA) => "SOA",
        Some(RecordType::SRV) => "SRV",
        Some(RecordType::SVCB) => "SVCB",
        Some(RecordType::TXT) => "TXT",
        _ => "other",
    }
}

/// As `dig` prints them.
fn code_label(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::NotImp => "NOTIMP",
        ResponseCode::Refused => "REFUSED",
        ResponseCode::BADVERS => "BADVERS",
        _ => "other",
    }
}
