//! The certificate of DNS over TLS, and what becomes of its files.

use std::sync::Arc;
use std::time::Duration;

use prometheus::IntGauge;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admin::Context;
use crate::cli::Failure;
use crate::config::DnsTls;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// What `/readyz` calls it.
const NOTE: &str = "dns.cert_file";

/// Reads the certificate, and again whenever its files change.
pub(super) fn open(
    tls: &DnsTls,
    context: &Arc<Context>,
    tasks: &mut JoinSet<()>,
    stop: &CancellationToken,
) -> Result<dns::Tls, Failure> {
    let failed = |why: String| Failure::Failed(format!("dns.tls_listen: {why}"));
    let opened = proxy::Certificate::open(tls.files.clone(), &[dns::tls::ALPN]);
    let certificate = Arc::new(opened.map_err(failed)?);
    let expiry = IntGauge::new(
        "heddle_dns_certificate_expiry_timestamp_seconds",
        "When the certificate of DNS over TLS expires, in seconds since 1970",
    )
    .map_err(|e| failed(e.to_string()))?;
    expiry.set(certificate.not_after().unwrap_or(0));
    context
        .metrics
        .register(Box::new(expiry.clone()))
        .map_err(|e| failed(e.to_string()))?;
    let (watched, context, stop) = (certificate.clone(), context.clone(), stop.clone());
    tasks.spawn(async move {
        let look = async {
            loop {
                tokio::time::sleep(LOOK).await;
                let certificate = watched.clone();
                let looked = tokio::task::spawn_blocking(move || certificate.look());
                let Ok(Some(news)) = looked.await else {
                    continue;
                };
                expiry.set(watched.not_after().unwrap_or(0));
                match news {
                    Ok(()) => {
                        tracing::info!("certificate of dns over tls read again");
                        context.rooms_mut().notes.remove(NOTE);
                    }
                    Err(error) => {
                        tracing::warn!(
                            error,
                            "certificate of dns over tls can't be used: the one before is shown on"
                        );
                        context.rooms_mut().notes.insert(NOTE, error);
                    }
                }
            }
        };
        stop.run_until_cancelled(look).await;
    });
    Ok(dns::Tls::new(move || certificate.config()))
}
