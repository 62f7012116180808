//! The end-to-end test bed: a private libvirt, real QEMU guests on bridges, peers in their own network namespaces and a
//! real S3 server. Everything lives inside namespaces that die with the test, however the test ends.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use vestigo_tests::{guest::{GuestImage, VmSpec}, site::Site};
//! let site = Site::start("demo")?;
//! let bridge = site.bridge("tenant-a")?;
//! let peer = site.peer("peer-a", &bridge, "10.77.0.1/24")?;
//! let image = GuestImage::ensure(&vestigo_tests::bins::path("guest-agent")?)?;
//! let vm = site.boot(&VmSpec::new("vm-1", &image, &bridge, "10.77.0.11/24").gateway("10.77.0.1"))?;
//! vm.wait_ready(std::time::Duration::from_secs(60))?;
//! assert_eq!(vm.console().check("hostname")?, "vm-1");
//! # Ok(()) }
//! ```

pub mod audit;
pub mod bench;
pub mod bins;
pub mod console;
pub mod demo;
pub mod guest;
pub mod husk;
pub mod inside;
pub mod ledger;
pub mod net;
pub mod paths;
pub mod pilot;
pub mod process;
pub mod require;
pub mod s3;
pub mod site;
pub mod stack;
pub mod traffic;
pub mod truth;
pub mod vm;
