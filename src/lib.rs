//! Ringback: async jobs and webhook delivery.
