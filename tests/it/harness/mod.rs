//! What the integration tests stand on.
//!
//! `database` gives each test a database of its own; `spec` holds answers against `openapi.yaml`.
//! Asserts nothing about the product itself.
//!
//! Invariant: what a test makes through the harness is gone when the test process has ended.

pub(crate) mod database;
pub(crate) mod spec;
