//! What the helper program `testbed` does inside a site's namespaces.

pub mod exec;
pub mod init;
pub mod peer;
