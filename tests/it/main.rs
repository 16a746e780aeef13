//! The integration tests: the product from outside, against a real PostgreSQL.
//!
//! One program, so that all tests share one database server and are linked once. `harness` is what they stand on; every
//! other file is a chapter of the specification.
//! Nothing here reaches into private parts of the library.
//!
//! Invariant: each test has a database of its own, so all may run at once and in any order.

mod harness;
