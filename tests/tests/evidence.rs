//! From a dead VM to its disk, on real VMs and a real S3 server: destroyed right after boot, rebooted, stopped and started,
//! deleted while daemons or the store are away.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vestigo_tests::{
    bins,
    guest::{GuestImage, VmSpec},
    net::Bridge,
    process,
    require::{self, Need},
    s3::S3Server,
    site::Site,
    stack::{Stack, Vault, nova_metadata},
    vm::Vm,
};

const BOOT: Duration = Duration::from_secs(180);
const PATIENCE: Duration = Duration::from_secs(120);
const BUCKET: &str = "evidence";

fn boot<'a>(site: &'a Site, image: &GuestImage, bridge: &Bridge, name: &str, address: &str) -> Result<Vm<'a>> {
    let metadata = nova_metadata(name, "project-a", "project-a", "account", address);
    site.boot(&VmSpec::new(name, image, bridge, address).metadata(&metadata))
}

/// Deletes the VM as Nova does and returns a copy of its disk as it was.
fn delete(vm: &Vm<'_>) -> Result<PathBuf> {
    let truth = vm.instance_dir().with_extension("truth");
    fs::copy(vm.disk_path(), &truth)?;
    vm.undefine()?;
    vm.delete_disk_like_nova()?;
    Ok(truth)
}

/// The ids of the items listed, with the domain of each.
fn items(stack: &Stack<'_>) -> Result<Vec<(String, String)>> {
    let said = stack.quarantine(&["list", "--json"])?;
    ensure!(said.status == 0, "quarantine list failed: {}", said.stderr);
    let mut all = Vec::new();
    for line in said.stdout.lines() {
        let item: Value = serde_json::from_str(line)?;
        let text = |key: &str| item.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        all.push((text("item"), text("domain")));
    }
    Ok(all)
}

fn item_of(stack: &Stack<'_>, vm: &Vm<'_>) -> Result<String> {
    process::wait_for(&format!("the item of {}", vm.name()), PATIENCE, || {
        Ok(items(stack)?.into_iter().find(|(_, domain)| domain == vm.uuid()).map(|(item, _)| item))
    })
    .with_context(|| format!("the logs: {}\n{}", stack.log("hostd"), stack.log("quarantine")))
}

/// The item verifies and its disk is the one that was deleted.
fn comes_back(stack: &Stack<'_>, vm: &Vm<'_>, truth: &Path) -> Result<()> {
    let item = item_of(stack, vm)?;
    let verified = stack.quarantine(&["verify", &item])?;
    ensure!(verified.status == 0, "verify: {verified:?}");
    let out = truth.with_extension("back");
    let got = stack.quarantine(&["get", &item, "--disk", "vda", "--out", &out.to_string_lossy()])?;
    ensure!(got.status == 0, "get: {got:?}");
    ensure!(fs::read(&out)? == fs::read(truth)?, "the disk of {} differs", vm.name());
    Ok(())
}

#[test]
fn no_vm_dies_without_leaving_its_disk() -> Result<()> {
    if !require::met(require::END_TO_END)? || !require::met(&[Need::S3])? {
        return Ok(());
    }
    let image = GuestImage::ensure(&bins::path("guest-agent")?)?;
    let site = Site::start("evidence")?;
    let s3 = S3Server::start(&site)?;
    s3.create_bucket_with_object_lock(BUCKET)?;
    let stack = Stack::new(&site, &[("atlas", "project-a")], &Vault::S3(&s3, BUCKET))?;
    stack.start_hostd()?;
    stack.start_quarantine()?;
    let bridge = site.bridge("tenant-a")?;

    // Destroyed and deleted right after its start, before its kernel is up.
    let brief = boot(&site, &image, &bridge, "brief", "10.77.0.11/24")?;
    brief.destroy()?;
    let brief_truth = delete(&brief)?;
    comes_back(&stack, &brief, &brief_truth)?;

    reboot_and_stop_leave_nothing(&site, &stack, &image, &bridge)?;
    the_store_is_away(&site, &stack, &s3, &image, &bridge)?;
    hostd_is_away(&site, &stack, &image, &bridge)
}

/// Stopped is not terminated.
fn reboot_and_stop_leave_nothing(site: &Site, stack: &Stack<'_>, image: &GuestImage, bridge: &Bridge) -> Result<()> {
    let vm = boot(site, image, bridge, "steady", "10.77.0.12/24")?;
    vm.wait_ready(BOOT)?;
    vm.reboot()?;
    vm.wait_ready(BOOT)?;
    vm.stop()?;
    vm.start()?;
    vm.wait_ready(BOOT)?;
    vm.destroy()?;
    // Longer than the pins' settle time and the daemon's poll.
    std::thread::sleep(Duration::from_secs(5));
    ensure!(items(stack)?.iter().all(|(_, domain)| domain != vm.uuid()), "something of a stopped VM was taken");
    let spooled =
        fs::read_dir(stack.spool())?.flatten().filter(|entry| entry.path().extension().is_some_and(|e| e == "json"));
    ensure!(spooled.count() == 0, "something of a stopped VM is in the spool");
    // Deleted at last, long after its end.
    let truth = delete(&vm)?;
    comes_back(stack, &vm, &truth)
}

/// The S3 server is down when the VM dies, and quarantine is killed meanwhile: the item waits, says so, and arrives.
fn the_store_is_away(
    site: &Site,
    stack: &Stack<'_>,
    s3: &S3Server<'_>,
    image: &GuestImage,
    bridge: &Bridge,
) -> Result<()> {
    let vm = boot(site, image, bridge, "patient", "10.77.0.13/24")?;
    vm.wait_ready(BOOT)?;
    s3.stop()?;
    vm.destroy()?;
    let truth = delete(&vm)?;
    process::wait_for("the outage to be said", PATIENCE, || {
        let log = stack.log("quarantine");
        Ok((log.contains(s3.endpoint()) && log.contains(BUCKET)).then_some(()))
    })
    .with_context(|| stack.log("quarantine"))?;
    let pending = stack.quarantine(&["list", "--pending"])?;
    ensure!(pending.status == 0 && pending.stdout.contains(vm.uuid()), "what waits is listed: {pending:?}");
    let asked = stack.quarantine(&["list"])?;
    ensure!(asked.status == 1 && asked.stderr.contains(s3.endpoint()), "one clear sentence: {asked:?}");
    stack.kill_quarantine()?;
    s3.start_again()?;
    stack.start_quarantine()?;
    comes_back(stack, &vm, &truth)
}

/// Deleted while hostd is down: found at its start.
fn hostd_is_away(site: &Site, stack: &Stack<'_>, image: &GuestImage, bridge: &Bridge) -> Result<()> {
    let vm = boot(site, image, bridge, "unseen", "10.77.0.14/24")?;
    vm.wait_ready(BOOT)?;
    stack.kill_hostd()?;
    vm.destroy()?;
    let truth = delete(&vm)?;
    stack.start_hostd()?;
    comes_back(stack, &vm, &truth)?;
    let captured = items(stack)?.len();
    assert_eq!(captured, 4, "four VMs died, four items are there");
    process::wait_for("the pins to be gone", PATIENCE, || {
        let left = fs::read_dir(stack.pins())?.flatten().filter(|entry| entry.path().is_dir()).count();
        Ok((left == 0).then_some(()))
    })
}
