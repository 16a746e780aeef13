//! Ringback: async jobs and webhook delivery.

pub mod backoff;
pub mod db;
pub mod json;
pub mod outbound;
pub mod signing;
