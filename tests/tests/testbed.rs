//! The test bed itself: a real guest with a hot-plugged channel, and nothing left behind by a killed test.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vestigo_tests::guest::{GuestImage, VmSpec};
use vestigo_tests::site::Site;
use vestigo_tests::vm::{Vm, channel_xml};
use vestigo_tests::{bins, process, require};

const BOOT: Duration = Duration::from_secs(90);

#[test]
fn a_guest_boots_reaches_its_peer_and_outlives_libvirtd() -> Result<()> {
    if !require::met(require::END_TO_END)? {
        return Ok(());
    }
    let begin = Instant::now();
    let image = GuestImage::ensure(&bins::path("guest-agent")?)?;
    eprintln!("image after {:?}", begin.elapsed());
    let begin = Instant::now();
    let site = Site::start("testbed")?;
    eprintln!("libvirt answers after {:?}", begin.elapsed());
    let bridge = site.bridge("tenant-a")?;
    let peer = site.peer("peer-a", &bridge, "10.77.0.1/24")?;
    let listener = peer.listen_tcp(7000)?;
    let begin = Instant::now();
    let vm = site.boot(&VmSpec::new("vm-1", &image, &bridge, "10.77.0.11/24").gateway("10.77.0.1"))?;
    eprintln!("domain started after {:?}", begin.elapsed());
    vm.wait_ready(BOOT)?;
    eprintln!("boot to shell: {:?} on {:?}", begin.elapsed(), image.accelerator());

    let console = vm.console();
    assert_eq!(console.check("hostname")?, "vm-1");
    assert_eq!(console.run("echo one; echo two >&2; exit 7", BOOT)?.status, 7);
    // Longer than a terminal's line, with every kind of quoting.
    let long = format!("cat <<'END'\n{}\n$HOME 'x' \"y\" \\\nEND", "0123456789".repeat(1000));
    assert!(console.check(&long)?.ends_with("$HOME 'x' \"y\" \\"));
    let bytes: Vec<u8> = (0..=255).collect();
    console.put("/etc/vestigo/some/file", &bytes.repeat(40), 0o600)?;
    assert_eq!(console.check("stat -c '%a %s' /etc/vestigo/some/file")?, "600 10240");
    console.check("ping -c 1 -w 10 10.77.0.1")?;
    console.check("echo from-guest | nc -w 5 10.77.0.1 7000 | grep vestigo-peer")?;
    let seen = listener.wait_for(1, BOOT)?;
    let first = seen.first().context("nothing seen")?;
    assert_eq!((first.address.as_str(), first.line.as_str()), ("10.77.0.11", "from-guest"));
    site.restart_libvirtd()?;
    assert_eq!(vm.state()?, "running");
    vm.reboot()?;
    vm.wait_ready(BOOT)?;
    vm.console().check("echo kept > /root/note")?;
    vm.stop()?;
    vm.start()?;
    vm.wait_ready(BOOT)?;
    assert_eq!(vm.console().check("cat /root/note")?, "kept");
    vm.destroy()?;
    vm.undefine()?;
    vm.delete_disk_like_nova()?;
    assert!(!vm.disk_path().exists());
    Ok(())
}

/// Two kinds of domains: one that has a virtio-serial controller (Nova gives one to images that ask for QEMU's own agent),
/// and one that has to be given one first.
#[test]
fn both_ways_of_plugging_the_channel_work() -> Result<()> {
    if !require::met(require::END_TO_END)? {
        return Ok(());
    }
    let image = GuestImage::ensure(&bins::path("guest-agent")?)?;
    let site = Site::start("channel")?;
    let bridge = site.bridge("tenant-a")?;
    let plain = site.boot(&VmSpec::new("plain", &image, &bridge, "10.77.0.11/24"))?;
    let mut spec = VmSpec::new("serial", &image, &bridge, "10.77.0.12/24");
    spec.extra_devices = "<controller type='virtio-serial' index='0'/>".to_owned();
    let serial = site.boot(&spec)?;
    for vm in [&plain, &serial] {
        vm.wait_ready(BOOT)?;
        let begin = Instant::now();
        // The port is for this test; the agent would hold it.
        vm.console().check("chmod a-x /usr/sbin/guest-agent; killall guest-agent 2> /dev/null || true")?;
        if vm.name() == "plain" {
            vm.attach_device("<controller type='virtio-serial'/>")?;
        }
        vm.attach_device(&channel_xml(&vm.agent_socket()))?;
        channel_talks(&site, vm, begin)?;
    }
    Ok(())
}

fn channel_talks(site: &Site, vm: &Vm<'_>, plugged: Instant) -> Result<()> {
    let port = "/dev/virtio-ports/org.vestigo.attribution.0";
    vm.console().until(&format!("test -c {port}"), BOOT)?;
    eprintln!("{} has the port {:?} after plugging", vm.name(), plugged.elapsed());
    let stream = site.connect(&vm.agent_socket())?;
    stream.set_read_timeout(Some(BOOT))?;
    vm.console().check(&format!("(echo to-host; head -n 1 > /tmp/got) <> {port} >&0 2> /dev/null &"))?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    assert_eq!(line, "to-host\n");
    (&stream).write_all(b"to-guest\n")?;
    assert_eq!(vm.console().until("grep . /tmp/got", BOOT)?, "to-guest");
    Ok(())
}

#[test]
fn a_killed_test_leaves_nothing_running() -> Result<()> {
    if !require::met(require::END_TO_END)? {
        return Ok(());
    }
    let mut victim =
        Command::new(bins::path("testbed")?).arg("hold").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(victim.stdout.take().context("no output")?).lines();
    let dir = lines.next().transpose()?.context("the victim did not start")?;
    ensure!(process::command_lines_with(&dir)?.iter().any(|(_, line)| line.contains("qemu-system")), "no QEMU to kill");
    victim.kill()?;
    victim.wait()?;
    process::wait_for("everything of the site to be gone", Duration::from_secs(10), || {
        Ok(process::command_lines_with(&dir)?.is_empty().then_some(()))
    })
}
