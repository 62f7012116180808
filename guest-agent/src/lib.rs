//! Isolates every user payload inside a VM and tells the hypervisor who it is before its first instruction runs.
//!
//! The parts, from the outside in: [`cli`] and [`client`] are what a pilot calls; [`daemon`] takes its request, owns the
//! [`lease`]s and decides; [`network`] gives the payload a network namespace whose packets leave the VM only from its own
//! port block; [`sandbox`] builds everything else around it; [`link`] makes the record durable at the hypervisor first.
//! Policy (leases, link session, manifest) is pure code; files, sockets and kernel calls stay at the edges.

pub mod cgroup;
pub mod cli;
pub mod client;
pub mod config;
pub mod daemon;
pub mod detail;
pub mod environment;
pub mod explain;
pub mod identity;
pub mod lease;
pub mod link;
pub mod network;
pub mod plain;
pub mod protocol;
pub mod sandbox;
pub mod selftest;
pub mod shape;
pub mod shim;
pub mod status;
pub mod suspend;
pub mod sys;
pub mod terminal;
pub mod wire;
