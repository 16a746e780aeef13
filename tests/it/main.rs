//! The integration tests: one binary, one file for each concept, all of them from outside.
//!
//! They speak HTTP to the service and start the real program; each test has a service and a database of its own.

mod accept;
mod architecture;
mod callback;
mod cli;
mod crash;
mod endpoint_stores;
mod endpoints;
mod errors;
mod events;
mod events_log;
mod execute;
mod explain_job;
mod fairness;
mod groups;
mod harness;
mod health;
mod idempotency;
mod killed_workers;
mod kinds;
mod leases;
mod lines;
mod lists;
mod nodes;
mod order;
mod outage;
mod pubsub;
mod queues;
mod races;
mod replays;
mod retention;
mod schedule_lists;
mod schedules;
mod spec;
mod sql;
mod worker_cli;
