//! What the integration tests stand on.
//!
//! `database` gives each test a database of its own, `service` a service on it in this process, `process` the real
//! program as a child. Both are spoken to by `client`; every answer passes `observed`. `receiver` is what callbacks and
//! `http` jobs call, `spec` holds answers against `openapi.yaml`. `wait` waits for conditions, never for time.
//! `proxy` is a line to the database that can be cut, `worker` is `ringback worker` as a child.
//! Asserts nothing about a single endpoint, only what holds for all of them.
//!
//! Invariant: what a test makes through the harness is gone when the test process has ended.

pub(crate) mod client;
pub(crate) mod database;
pub(crate) mod observed;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod receiver;
pub(crate) mod service;
pub(crate) mod smtp;
pub(crate) mod spec;
pub(crate) mod wait;
pub(crate) mod worker;

pub(crate) use client::{Answer, Client};
pub(crate) use observed::observed;
pub(crate) use receiver::{Received, Receiver, Reply};
pub(crate) use service::Ringback;
pub(crate) use wait::{PATIENCE, eventually};
