//! `hostd`: sees every VM's flows at the tap, knows instance and VO, and keeps a hold on every disk.
//!
//! Pure: [`decode`], [`meter`], [`attribute`], [`unleased`], [`join`], [`bans`], [`tasks`], [`quota`], [`tally`], [`witness`], [`guestlink::Session`], the policies of [`domain`] and [`pin`].
//! Edges: [`capture`] (packet sockets), [`domain`] (libvirt), [`guestlink`] (channels), [`recorder`] (ledger), [`pin`] (links), [`offline`] (capture files),
//! [`status`] (a socket that shows every number), [`top`] (the terminal).
//! [`service`] owns the state between them; [`daemon`] puts all together. [`watch`] captures interfaces by name, without VMs.

pub mod attribute;
pub mod bans;
pub mod capture;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod decode;
pub mod domain;
pub mod guestlink;
pub mod join;
pub mod machines;
pub mod meter;
pub mod nat;
pub mod offline;
pub mod payloads;
pub mod pin;
pub mod quota;
pub mod recorder;
pub mod service;
pub mod status;
pub mod tally;
pub mod tasks;
pub mod top;
pub mod unleased;
pub mod vm;
pub mod watch;
pub mod witness;
