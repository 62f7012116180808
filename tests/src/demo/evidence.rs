//! From a dead VM to its disk.

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vestigo_model::{Label, TimeRange, Timestamp};

use super::{BUCKET, TENANTS, same_bytes, story::Story};
use crate::{
    pilot::{self, Work},
    process,
    stack::Stack,
    vm::Vm,
};

const MARKER: &str = "VESTIGO-MARKER-7f3a91c2-what-was-here-before-the-VM-died";
const PATIENCE: Duration = Duration::from_secs(120);

/// One VM is destroyed and its disk deleted seconds after a payload wrote to it; the disk comes back from S3.
pub(super) fn disk_comes_back(story: &Story, stack: &Stack<'_>, vms: &[Vm<'_>; 2]) -> Result<()> {
    let (tenant, [vm, _]) = (&TENANTS[0], vms);
    story.chapter("One VM is destroyed and its disk deleted, seconds after a payload wrote a marker into it");
    let user = tenant.users[2];
    let work = Work {
        payload: "task-that-writes".into(),
        user: user.into(),
        command: format!("echo {MARKER} > $HOME/marker && sync"),
    };
    pilot::run_well(vm, tenant.vo, tenant.pilot, &[work])?;
    story.tell(&format!("a payload of {user} has written the marker"));
    vm.destroy()?;
    // The truth to compare with; the cloud manager would not keep one.
    let truth = vm.instance_dir().with_extension("truth");
    fs::copy(vm.disk_path(), &truth)?;
    vm.undefine()?;
    vm.delete_disk_like_nova()?;
    ensure!(!vm.disk_path().exists(), "the disk is still there");
    story.tell("the VM is destroyed, undefined, and its folder removed as Nova does it");

    let listed = process::wait_for("the item to be listed", PATIENCE, || {
        let said = stack.quarantine(&["list", "--json"])?;
        Ok(said.stdout.lines().next().map(str::to_owned))
    })
    .with_context(|| format!("the log of quarantine: {}", stack.log("quarantine")))?;
    let item = serde_json::from_str::<Value>(&listed)?["item"].as_str().context("no item id")?.to_owned();
    for question in [vec!["list"], vec!["verify", &item]] {
        story.typed("quarantine", &question);
        let said = stack.quarantine(&question)?;
        ensure!(said.status == 0, "quarantine {question:?} failed: {}{}", said.stdout, said.stderr);
        story.shown(&said.stdout);
    }
    let out = truth.with_extension("back");
    let question = ["get", &item, "--disk", "vda", "--out", &out.to_string_lossy()];
    story.typed("quarantine", &question);
    let said = stack.quarantine(&question)?;
    ensure!(said.status == 0, "quarantine get failed: {}{}", said.stdout, said.stderr);
    story.shown(&said.stdout);
    story.check(
        &format!("the disk from s3://{BUCKET} is the destroyed one, bit for bit"),
        &same_bytes(&out, &truth)?,
        &true,
    )?;
    let image = fs::read(&out)?;
    let marked = image.windows(MARKER.len()).any(|window| window == MARKER.as_bytes());
    story.check("the marker is in it", &marked, &true)?;
    manifest(story, stack, &item)
}

/// What the manifest says of the VM and its people.
fn manifest(story: &Story, stack: &Stack<'_>, item: &str) -> Result<()> {
    let tenant = &TENANTS[0];
    let question = ["show", item, "--json"];
    story.typed("quarantine", &["show", item]);
    story.shown(&stack.quarantine(&["show", item])?.stdout);
    let shown = stack.quarantine(&question)?.json()?;
    let manifest = shown.get("manifest").unwrap_or(&shown);
    let text = |value: &Value| value.as_str().unwrap_or("nothing").to_owned();
    story.check("the manifest names the VO", &text(&manifest["vo"]), &tenant.vo.to_owned())?;
    story.check("and the instance", &text(&manifest["instance"]["domain"]), &tenant.uuid.to_owned())?;
    let payloads = manifest["guest_claims"]["payloads"].as_array().context("no payloads in the manifest")?;
    let users: BTreeSet<String> = payloads.iter().map(|payload| text(&payload["user"]["subject"])).collect();
    story.check("and its users, as claims, by their pseudonyms", &users, &pseudonyms(stack, &tenant.users)?)
}

/// The manifest names nobody: whoever holds the site's keys knows under which names the users stand.
fn pseudonyms(stack: &Stack<'_>, users: &[&str]) -> Result<BTreeSet<String>> {
    let keys = stack.keyring()?;
    let always = TimeRange { from: Timestamp::from_nanos(0), to: Timestamp::from_nanos(i64::MAX) };
    let issuer = Label::new(pilot::ISSUER)?;
    let mut all = BTreeSet::new();
    for user in users {
        all.extend(keys.pseudonyms(&issuer, &Label::new(*user)?, None, always).iter().map(ToString::to_string));
    }
    Ok(all)
}
