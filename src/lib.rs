//! Ringback: async jobs and webhook delivery. The call returns immediately; we ring you back.
//!
//! The map, in reading order; `ARCHITECTURE.md` has the picture and the invariants.

// The edges and the composition.
pub mod app;
pub mod cli;
pub mod config;
pub mod engine;
pub mod executors;
pub mod http;
pub mod outbound;
pub mod sending;
pub mod shared;
pub mod supervisor;
pub mod telemetry;

// The rooms: one noun each, with its types, its decisions and its SQL.
pub mod deliveries;
pub mod endpoints;
pub mod events;
pub mod idempotency;
pub mod jobs;
pub mod nodes;
pub mod replays;
pub mod schedules;
pub mod secrets;
pub mod tenants;
pub mod workers;

// What all of them stand on.
pub mod backoff;
pub mod clock;
pub mod courtesy;
pub mod db;
pub mod fields;
pub mod ids;
pub mod json;
pub mod keyfile;
pub mod operator;
pub mod receivers;
pub mod secret;
pub mod signing;
pub mod target;
pub mod topics;
pub mod wakeups;
