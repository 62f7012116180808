//! From an address, a port and a time to a name; and the other directions.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{PORT, TENANTS, Tenant, VICTIM, story::Story};
use crate::{
    net::{PeerListener, Seen},
    pilot::{self, ISSUER, Work},
    process,
    stack::Stack,
    truth::rfc3339,
    vm::Vm,
};

const SECOND: u64 = 1_000_000_000;

/// In each VM a pilot starts the payloads of three users at once; all call the same address and port.
pub(super) fn payloads_call(story: &Story, vms: &[Vm<'_>; 2], listener: &PeerListener) -> Result<Vec<Seen>> {
    story.chapter(&format!("In each VM a pilot starts payloads of three users at once; all call {VICTIM} port {PORT}"));
    std::thread::scope(|scope| {
        let pilots: Vec<_> = TENANTS
            .iter()
            .zip(vms)
            .map(|(tenant, vm)| {
                let works: Vec<Work> =
                    tenant.users.iter().map(|user| Work::call(&Tenant::task(user), user, VICTIM, PORT, 5)).collect();
                scope.spawn(move || pilot::run_well(vm, tenant.vo, tenant.pilot, &works))
            })
            .collect();
        pilots.into_iter().try_for_each(|pilot| pilot.join().unwrap_or_else(|_| anyhow::bail!("a pilot panicked")))
    })?;
    let seen = listener.wait_for(6, Duration::from_secs(10))?;
    story.tell("what the victim saw:");
    for call in &seen {
        story.shown(&format!("{} from {} port {}", rfc3339(call.time_ns)?, call.address, call.port));
    }
    Ok(seen)
}

/// The truth behind a call: the tenant by its address, the user by the line that the payload sent.
fn truth(call: &Seen) -> Result<(&'static Tenant, &'static str)> {
    let tenant = TENANTS.iter().find(|tenant| tenant.ip() == call.address).context("a call from nowhere")?;
    let user = tenant.users.iter().find(|user| Tenant::task(user) == call.line).context("a call of nobody's")?;
    Ok((tenant, user))
}

/// Asks for every call the victim saw; shows the first.
pub(super) fn who(story: &Story, stack: &Stack<'_>, seen: &[Seen]) -> Result<()> {
    story.chapter("An abuse report arrives: a time, an address, a port. Who was it?");
    let last = seen.iter().map(|call| call.time_ns).max().context("nobody called")?;
    wait_for_coverage(stack, last)?;
    let mut names = BTreeSet::new();
    for (n, call) in seen.iter().enumerate() {
        let (time, port) = (rfc3339(call.time_ns)?, call.port.to_string());
        let question = ["who", "--time", &time, "--ip", &call.address, "--port", &port];
        if n == 0 {
            story.typed("vestigo", &question);
            story.shown(&stack.vestigo(&question)?.stdout);
        }
        let answer = stack.vestigo_json(&question)?;
        let (tenant, user) = truth(call)?;
        let name = format!("{} port {} at {time}: {user} of {}", call.address, call.port, tenant.vo);
        story.check(&name, &described(&answer)?, &expected(tenant, user))?;
        ensure!(answer["answer"]["coverage"]["complete"] == true, "the window was not covered: {answer:#}");
        names.insert(user);
    }
    story.check("six calls, six different users, nobody taken for another", &names.len(), &6)
}

/// hostd states coverage at intervals; an answer is complete when the window's statements are in.
fn wait_for_coverage(stack: &Stack<'_>, last: u64) -> Result<()> {
    let time = rfc3339(last)?;
    process::wait_for("the window to be covered", Duration::from_secs(60), || {
        let tenant = &TENANTS[0];
        let said = stack.vestigo(&["who", "--time", &time, "--ip", tenant.ip(), "--require-coverage"])?;
        Ok((said.status == 0).then_some(()))
    })
}

/// What an answer says, in the demo's words. There must be one candidate.
fn described(answer: &Value) -> Result<Vec<(&'static str, String)>> {
    let candidates = answer["answer"]["candidates"].as_array().context("no candidates")?;
    let [one] = candidates.as_slice() else { anyhow::bail!("{} candidates: {answer:#}", candidates.len()) };
    let (host, guest) = (&one["host_facts"], &one["guest_claims"]);
    let text = |value: &Value| value.as_str().unwrap_or("nothing").to_owned();
    Ok(vec![
        ("VO (host fact)", text(&host["vo"])),
        ("domain (host fact)", text(&host["domain"])),
        ("pilot (claim)", text(&guest["pilot"])),
        ("payload (claim)", text(&guest["payload_id"])),
        ("user (claim)", text(&guest["user"]["subject"])),
        ("issuer (claim)", text(&guest["user"]["issuer"])),
        ("trust", text(&guest["trust"])),
        ("attribution", text(&one["attribution"]["quality"])),
    ])
}

fn expected(tenant: &Tenant, user: &str) -> Vec<(&'static str, String)> {
    vec![
        ("VO (host fact)", tenant.vo.to_owned()),
        ("domain (host fact)", tenant.uuid.to_owned()),
        ("pilot (claim)", tenant.pilot.to_owned()),
        ("payload (claim)", Tenant::task(user)),
        ("user (claim)", user.to_owned()),
        ("issuer (claim)", ISSUER.to_owned()),
        ("trust", "asserted-by-vo".to_owned()),
        ("attribution", "lease".to_owned()),
    ]
}

/// `ips` and `pilots`.
pub(super) fn other_directions(story: &Story, stack: &Stack<'_>, seen: &[Seen]) -> Result<()> {
    story.chapter("The other directions: which addresses had a VO, which pilots ran a user's payloads");
    let times = seen.iter().map(|call| call.time_ns);
    let first = times.clone().min().context("nobody called")?;
    let last = times.max().context("nobody called")?;
    let (from, to) = (rfc3339(first - SECOND)?, rfc3339(last + SECOND)?);
    for tenant in &TENANTS {
        let question = ["ips", "--vo", tenant.vo, "--from", &from, "--to", &to];
        story.typed("vestigo", &question);
        story.shown(&stack.vestigo(&question)?.stdout);
        let answer = stack.vestigo_json(&question)?;
        let used =
            texts(&answer["answer"]["rows"], |row| (row["used"] == true && row["flows"] != 0).then(|| &row["ip"]));
        // Link-local IPv6 chatter of the kernel is the VM's own, too.
        let global: BTreeSet<String> = used.into_iter().filter(|ip| !ip.starts_with("fe80")).collect();
        story.check(
            &format!("{} had {}", tenant.vo, tenant.ip()),
            &global,
            &BTreeSet::from([tenant.ip().to_owned()]),
        )?;
        let user = tenant.users[1];
        let question = ["pilots", "--user", user];
        story.typed("vestigo", &question);
        story.shown(&stack.vestigo(&question)?.stdout);
        let answer = stack.vestigo_json(&question)?;
        let pilots = texts(&answer["answer"]["rows"], |row| Some(&row["pilot"]));
        story.check(&format!("{user} ran in {}", tenant.pilot), &pilots, &BTreeSet::from([tenant.pilot.to_owned()]))?;
    }
    Ok(())
}

fn texts<'a>(rows: &'a Value, pick: impl Fn(&'a Value) -> Option<&'a Value>) -> BTreeSet<String> {
    let rows = rows.as_array().map(Vec::as_slice).unwrap_or_default();
    rows.iter().filter_map(pick).filter_map(|value| value.as_str().map(str::to_owned)).collect()
}
