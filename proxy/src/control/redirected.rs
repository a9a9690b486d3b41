//! Virtual IPs through nftables: one listener per worker and family, and the redirect that leads to them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::in_words;
use crate::error::ProxyError;
use crate::metrics::RepairStats;
use crate::redirect::{Redirect, RedirectConfig};
use crate::sockets::{self, Inherited, Listen, SocketError};
use crate::worker::{Command, LeadsTo, WorkerHandle};

/// How often what others may have removed from nftables and the routes is looked after.
const ENSURE: Duration = Duration::from_secs(2);

/// The redirect, and what it is to hold.
pub(super) struct Redirected {
    redirect: Redirect,
    pub(super) services: BTreeSet<(IpAddr, u16)>,
    pub(super) error: Option<String>,
    ensured: Instant,
    repairs: Arc<RepairStats>,
}

impl Redirected {
    /// Opens the listeners that take the redirected connections, then puts the redirect in place, for `services` at
    /// once: what a former process served goes on without a gap.
    pub(super) fn start(
        workers: &[WorkerHandle],
        mut config: RedirectConfig,
        inherited: &mut Inherited,
        services: BTreeSet<(IpAddr, u16)>,
        repairs: Arc<RepairStats>,
    ) -> Result<Self, ProxyError> {
        let v4: IpAddr = std::net::Ipv4Addr::UNSPECIFIED.into();
        let v6: IpAddr = std::net::Ipv6Addr::UNSPECIFIED.into();
        for wildcard in [v4, v6] {
            if !config
                .ranges
                .iter()
                .any(|(ip, _)| ip.is_ipv4() == wildcard.is_ipv4())
            {
                continue;
            }
            let wanted = Listen {
                address: (wildcard, config.port).into(),
                count: workers.len(),
                dual_stack: false,
                alone: true,
            };
            let fail = |source| ProxyError::RedirectListener { source };
            let listeners = sockets::listen(wanted, inherited).map_err(fail)?;
            for (at, listener) in listeners.into_iter().enumerate() {
                let address = listener.local_addr().map_err(|source| {
                    fail(SocketError {
                        address: wanted.address,
                        step: "ask for the port of",
                        source,
                    })
                })?;
                config.port = address.port();
                let leads_to = LeadsTo::OriginalDestination;
                workers[at % workers.len()].send(Command::Open {
                    address,
                    listener,
                    leads_to,
                });
            }
        }
        let redirect = Redirect::install(config, &services)
            .map_err(|source| ProxyError::Redirect { source })?;
        Ok(Redirected {
            redirect,
            services,
            error: None,
            ensured: Instant::now(),
            repairs,
        })
    }

    /// Hands the services to the kernel.
    pub(super) fn set(&mut self) {
        self.error = match self.redirect.set_services(&self.services) {
            Ok(()) => None,
            Err(error) => {
                tracing::error!(error = in_words(&error), "virtual IPs can't be redirected");
                Some(in_words(&error))
            }
        };
    }

    pub(super) fn exceptions(&self) -> &[SocketAddr] {
        self.redirect.exceptions()
    }

    /// Leads sockets' addresses to the ports that they really have.
    pub(super) fn move_exceptions(
        &mut self,
        moved: &[(SocketAddr, u16)],
    ) -> Result<(), ProxyError> {
        self.redirect
            .move_exceptions(moved)
            .map_err(|source| ProxyError::Redirect { source })
    }

    /// Puts back what others removed, and tries again what failed.
    pub(super) fn tend(&mut self, now: Instant) {
        if now.duration_since(self.ensured) < ENSURE {
            return;
        }
        self.ensured = now;
        match self.redirect.ensure() {
            Ok(repaired) => {
                self.repairs.count(repaired);
                if self.error.is_some() {
                    self.set();
                }
            }
            Err(error) => {
                let error = Some(in_words(&error));
                if error != self.error {
                    tracing::error!(error, "virtual IPs can't be looked after, trying again");
                    self.error = error;
                }
            }
        }
    }
}
