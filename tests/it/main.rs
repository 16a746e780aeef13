//! The integration tests: one binary, one file for each concept, and the harness that they stand on.

mod harness;
mod spec;
