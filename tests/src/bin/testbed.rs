//! The test bed's helper program. The library starts it, except for one command for people:
//!
//! - `testbed hold`: a site with one guest, to look around in, until standard input ends (Ctrl-D).
//! - `testbed init NAME DIR`: first process of a site's namespaces: mounts, loopback, reaping; ends with its standard input.
//! - `testbed exec PID NETNS PROGRAM …`: runs a program inside a site (`-` for the site's own network).
//! - `testbed tcp ADDRESS:PORT`, `testbed udp ADDRESS:PORT`: a peer that records who came, as JSON lines.
//! - `testbed ping -`: the same for those who ping it.

use std::io::Read;
use std::time::Duration;

use anyhow::{Result, bail};
use vestigo_tests::guest::{GuestImage, VmSpec};
use vestigo_tests::site::Site;
use vestigo_tests::{bins, inside};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["init", name, dir] => inside::init::run(name, dir.as_ref()),
        ["exec", pid, netns, program, rest @ ..] => inside::exec::run(pid, netns, program, rest),
        ["tcp", address] => inside::peer::tcp(address),
        ["udp", address] => inside::peer::udp(address),
        ["ping", _] => inside::peer::ping(),
        ["hold"] => hold(),
        _ => bail!("the only command for people is `testbed hold`; the test bed itself uses the others"),
    }
}

fn hold() -> Result<()> {
    let image = GuestImage::ensure(&bins::path("guest-agent")?)?;
    let site = Site::start("hold")?;
    let bridge = site.bridge("tenant-a")?;
    let _peer = site.peer("peer-a", &bridge, "10.77.0.1/24")?;
    let vm = site.boot(&VmSpec::new("vm-1", &image, &bridge, "10.77.0.11/24").gateway("10.77.0.1"))?;
    // The first line is for the test that kills this program.
    println!("{}", site.dir().display());
    println!("inside:  {} exec {} - bash", bins::path("testbed")?.display(), site.init_pid());
    println!("on peer: {} exec {} peer-a bash", bins::path("testbed")?.display(), site.init_pid());
    vm.wait_ready(Duration::from_secs(120))?;
    println!("vm-1 is up: virsh works inside; Ctrl-D ends all");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
