//! Sites, peers and the door into them, without guests.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use vestigo_tests::process;
use vestigo_tests::require::{self, Need};
use vestigo_tests::site::Site;

const NEEDS: &[Need] = &[Need::Root, Need::Network];
const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_program_inside_is_reached_by_signals_and_ends_as_it_ended() -> Result<()> {
    if !require::met(NEEDS)? {
        return Ok(());
    }
    let site = Site::start_without_libvirt("signals")?;
    assert_eq!(site.run("hostname", &[])?.trim(), "signals");
    assert_eq!(site.command("sh")?.args(["-c", "exit 7"]).status()?.code(), Some(7));

    // A trap shows that the program itself got the signal, and its own end shows outside.
    let script = "trap 'echo term; exit 3' TERM; echo up; while :; do sleep 0.05; done";
    let mut child = site.command("sh")?.args(["-c", script]).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    assert_eq!(lines.next().transpose()?.as_deref(), Some("up"));
    process::signal(&child, Signal::SIGTERM)?;
    assert_eq!(lines.next().transpose()?.as_deref(), Some("term"));
    assert_eq!(child.wait()?.code(), Some(3));

    let mut child = site.command("sleep")?.arg("600").spawn()?;
    let inner = process::inner_pid(&child)?;
    child.kill()?;
    assert_eq!(child.wait()?.signal(), Some(9));
    process::wait_for("the program inside to be killed too", SOON, || Ok(gone(inner).then_some(())))?;

    let child = site.command("sleep")?.arg("600").spawn()?;
    let inner = process::inner_pid(&child)?;
    let dir = site.dir().to_owned();
    drop(site);
    assert!(gone(inner), "a program outlived its site");
    assert!(!dir.exists(), "the site's folder is still there");
    Ok(())
}

/// Dead; whether its parent has already taken note of that (it may be the machine's own first process) is another matter.
fn gone(pid: u32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    state.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with(['Z', 'X']))
}

#[test]
fn two_tenants_use_the_same_addresses() -> Result<()> {
    if !require::met(NEEDS)? {
        return Ok(());
    }
    let site = Site::start_without_libvirt("tenants")?;
    for tenant in ["a", "b"] {
        let bridge = site.bridge(&format!("tenant-{tenant}"))?;
        let server = site.peer(&format!("server-{tenant}"), &bridge, "10.77.0.1/24")?;
        let client = site.peer(&format!("client-{tenant}"), &bridge, "10.77.0.11/24")?;
        server.add_address("fd77::1/64")?;
        client.add_address("fd77::11/64")?;
        let (tcp, udp) = (server.listen_tcp(7000)?, server.listen_udp(7000)?);
        let mut talk = client.command("bash")?;
        let over_tcp = format!("exec 3<>/dev/tcp/{{}}/7000; echo from-{tenant} >&3; head -n 1 <&3");
        let (four, six) = (over_tcp.replace("{}", "10.77.0.1"), over_tcp.replace("{}", "fd77::1"));
        let over_udp = format!("exec 4<>/dev/udp/10.77.0.1/7000; echo datagram-{tenant} >&4; head -n 1 <&4");
        let said = process::output(talk.args(["-c", &format!("{four}\n{six}\n{over_udp}")]))?;
        assert_eq!(said, format!("vestigo-peer\nvestigo-peer\ndatagram-{tenant}\n"));
        let seen = tcp.wait_for(2, SOON)?;
        let saw: Vec<_> = seen.iter().map(|seen| (seen.address.as_str(), seen.line.as_str())).collect();
        assert_eq!(saw, [("10.77.0.11", &*format!("from-{tenant}")), ("fd77::11", &*format!("from-{tenant}"))]);
        assert_eq!(udp.wait_for(1, SOON)?.first().context("none")?.address, "10.77.0.11");
    }
    Ok(())
}

#[test]
fn a_peer_has_no_way_out() -> Result<()> {
    if !require::met(NEEDS)? {
        return Ok(());
    }
    let site = Site::start_without_libvirt("closed")?;
    let bridge = site.bridge("tenant-a")?;
    let peer = site.peer("peer-a", &bridge, "10.77.0.1/24")?;
    for mut command in [site.command("ip")?, peer.command("ip")?] {
        let routes = process::output(command.args(["route", "show", "default"]))?;
        assert_eq!(routes, "");
    }
    let out_here = TcpListener::bind((Ipv4Addr::new(10, 77, 0, 1), 0));
    assert!(out_here.is_err(), "the peer's address is on the machine itself");
    Ok(())
}
