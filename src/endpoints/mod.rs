//! Endpoints: who wants to hear of which events, and how they want to be told.

pub mod expression;
