//! One suite for both backends: what `Store` promises, a test for each promise.

#[path = "../../../tests/support/etcd.rs"]
mod etcd_server;
#[path = "../harness/mod.rs"]
#[macro_use]
mod harness;

mod leases;
mod listings;
mod transactions;
mod watches;
