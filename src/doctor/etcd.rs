//! etcd: whether each member answers, and what time it is there.

use std::time::{Duration, Instant};

use model::Timestamp;
use registry::follow::chain;
use registry::store::{EtcdOptions, EtcdStore, Store as _, StoreError, etcd_date};

use super::{Finding, date};
use crate::config::Etcd;

const ABOUT: &str = "etcd";
const CLOCK: &str = "clock";
/// What is measured is exact to a second.
const APART: Duration = Duration::from_secs(5);

pub async fn look(etcd: &Etcd, prefix: &str) -> Vec<Finding> {
    let mut all = Vec::new();
    for endpoint in &etcd.endpoints {
        let options = EtcdOptions {
            endpoints: vec![endpoint.clone()],
            ..etcd.options()
        };
        let began = Instant::now();
        match ask(options.clone(), prefix).await {
            Ok(()) => {
                let took = began.elapsed().as_millis();
                all.push(Finding::ok(ABOUT, format!("{endpoint} answers in {took} ms")));
                all.push(clock(endpoint, &options).await);
            }
            Err(error) => all.push(Finding::fail(
                ABOUT,
                format!("{endpoint}: {}", chain(&error)),
                "start that member, or correct registry.endpoints, the files of registry.*_file or the user's role; \
                 a node serves on meanwhile from its last snapshot",
            )),
        }
    }
    all
}

async fn ask(options: EtcdOptions, prefix: &str) -> Result<(), StoreError> {
    let store = EtcdStore::connect(options).await?;
    store.get(&format!("{prefix}/doctor")).await.map(|_| ())
}

async fn clock(endpoint: &str, options: &EtcdOptions) -> Finding {
    let told = match etcd_date(endpoint, options).await {
        Ok(told) => told,
        Err(why) => {
            return Finding::skipped(CLOCK, format!("{endpoint} does not tell its time: {why}"));
        }
    };
    let Some(there) = date::parse(&told) else {
        return Finding::skipped(CLOCK, format!("{endpoint} tells a time that can't be read"));
    };
    let apart = Duration::from_millis(Timestamp::now().0.abs_diff(there.0));
    match apart > APART {
        false => Finding::ok(CLOCK, format!("the same as at {endpoint}, to some seconds")),
        true => Finding::warn(
            CLOCK,
            format!("{} s apart from {endpoint}", apart.as_secs()),
            "run an NTP client (chrony, systemd-timesyncd) on both: times in events and certificates' ends are off, \
             though no lease depends on it",
        ),
    }
}
