//! Tests of the whole; see `rust/`.
