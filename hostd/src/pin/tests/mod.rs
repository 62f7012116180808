#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod deleting;
mod random;
mod rules;
mod surviving;
mod world;
