//! The real program as a child.
