//! The store from outside: what it promises, on real files, with real kills, damage and full disks.
#![allow(clippy::unwrap_used, reason = "tests, their helpers included")]

mod archive;
mod basics;
mod check;
mod concurrent;
mod crash;
mod damage;
mod evict;
mod failures;
mod full;
mod gc;
mod listing;
mod lru;
mod manifests;
mod model;
mod opening;
mod pins;
mod power;
mod snapshots;
mod support;
