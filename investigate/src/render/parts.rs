//! Host facts and guest claims, visibly apart.

use vestigo_ledger::questions::{
    elsewhere::{AlsoSeen, Sameness},
    parts::{FlowSeen, GuestClaims, HostFacts, MatchedOn},
    scitags::SciTagClaim,
};
use vestigo_model::{Basis, Direction, Expected, Holder, Initiator, SciTagSource};

use super::Lines;
use crate::arguments::protocol_word;

/// The word for a VO that no one mapped.
pub fn vo_word(vo: Option<&vestigo_model::Vo>) -> &str {
    vo.map_or("unmapped", |vo| vo.as_str())
}

/// What the host knows about a VM.
pub fn host_facts(facts: &HostFacts) -> String {
    let mut lines = Lines::default();
    lines.field("VO", vo_word(facts.vo.as_ref()));
    lines.field("instance", &facts.instance);
    lines.maybe("name", facts.name.as_ref());
    lines.maybe("cloud", facts.cloud.map(|cloud| cloud.as_str()));
    lines.maybe(
        "project",
        facts.project.as_ref().map(|p| match &p.name {
            Some(name) => format!("{name} ({})", p.id),
            None => p.id.to_string(),
        }),
    );
    lines.maybe("owner", facts.owner.as_ref());
    lines.maybe("image", facts.image.as_ref());
    lines.field("host", &facts.host);
    lines.field("domain", facts.domain);
    lines.field("taps", join(&facts.taps));
    if !facts.expected_addresses.is_empty() {
        lines.field("was given", join(&facts.expected_addresses));
    }
    for learnt in &facts.learnt_addresses {
        let words = match learnt.by {
            Basis::Dhcp => "given by a DHCP server",
            Basis::Announced | Basis::Cloud => "announced by the VM itself",
        };
        lines.field("was seen with", format!("{} ({words}, since {})", learnt.ip, learnt.since));
    }
    lines.maybe("ran from", facts.start);
    match (facts.start, facts.end) {
        (Some(_), Some(end)) => lines.field("ran to", format!("{} ({})", end.time, word(&end.why))),
        (Some(_), None) => lines.field("ran to", "no end recorded"),
        (None, _) => {}
    }
    lines.finish()
}

/// The word under which a plain enum is recorded.
fn word<T: serde::Serialize>(value: &T) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

fn join<T: std::fmt::Display>(values: &[T]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// One flow record.
pub fn flow(flow: &FlowSeen) -> String {
    let mut lines = Lines::default();
    lines.field("flow", ends(flow));
    lines.field("", format!("{} to {} at {}{}", flow.first, flow.last, flow.tap, vlan(flow)));
    lines.field(
        "",
        format!(
            "out {} packets, {} bytes; in {} packets, {} bytes; {}",
            flow.packets_out, flow.bytes_out, flow.packets_in, flow.bytes_in, flow.end_reason
        ),
    );
    if let Some(tunnel) = flow.tunnel {
        lines.field("", format!("inside a {} tunnel, network {}; in no sum", tunnel.kind(), tunnel.id()));
    }
    if let Some(echo) = flow.icmp.as_ref().filter(|icmp| icmp.words.starts_with("echo")) {
        let identifier = if flow.direction == Direction::Outgoing { flow.vm.port } else { flow.peer.port };
        lines.field("", format!("type {} code {}, identifier {identifier}", echo.kind, echo.code));
    }
    if let Some(error) = &flow.icmp_error {
        lines.field("", format!("last ICMP error about it: {}", error.words));
    }
    if let Some(of) = &flow.speaks_of {
        let words = format!("{} {} → {}", protocol_word(of.proto), of.source, of.destination);
        lines.field("", format!("the last of these errors speaks of {words}"));
    }
    if let Some(nat) = flow.post_nat {
        let asked = if flow.matched_on == MatchedOn::PostNat { " (the address asked for)" } else { "" };
        lines.field("", format!("seen by the world as {} port {}{asked}", nat.ip, nat.port));
    }
    if flow.initiator != Initiator::Seen && flow.folded.is_none() {
        lines.field("", format!("who began is {}", flow.initiator));
    }
    if flow.src_expected != Expected::Yes {
        lines.field("", format!("the VM's address is expected: {}", flow.src_expected));
    }
    lines.finish()
}

/// Protocol and both sides; many of them where conversations were folded.
fn ends(flow: &FlowSeen) -> String {
    let (proto, vm) = (protocol_word(flow.proto), flow.vm);
    let (arrow, way) = match flow.direction {
        Direction::Outgoing => ("→", "to"),
        Direction::Incoming => ("←", "from"),
    };
    match (flow.folded, &flow.icmp) {
        (None, None) => format!("{proto} {vm} {arrow} {}", flow.peer),
        (None, Some(icmp)) => format!("{proto} {} {arrow} {} {}", vm.ip, flow.peer.ip, icmp.words),
        (Some(folded), _) => {
            let ports = format!("ports {}-{}", vm.port, folded.last_port);
            format!(
                "{proto} {} {ports} {arrow} up to {} conversations {way} peers that were not kept",
                vm.ip, folded.flows
            )
        }
    }
}

fn vlan(flow: &FlowSeen) -> String {
    match (flow.vlan, flow.inner_vlan) {
        (Some(vlan), Some(inner)) => format!(", VLAN {inner} in VLAN {vlan}"),
        (Some(vlan), None) | (None, Some(vlan)) => format!(", VLAN {vlan}"),
        (None, None) => String::new(),
    }
}

/// Where else a candidate's conversation was seen.
pub fn also_seen(seen: &AlsoSeen) -> String {
    let mut lines = Lines::default();
    let facts = &seen.host_facts;
    let name = match seen.sameness {
        Sameness::Same => "also seen",
        Sameness::MayBe => "may be seen",
    };
    lines.field(name, format!("at {} of {}", seen.tap, vm(facts)));
    lines.field("", format!("{} {} ↔ {} (its own)", protocol_word(seen.proto), seen.candidate, seen.vm));
    lines.field("", &seen.why);
    lines.finish()
}

/// A VM in a few words.
pub fn vm(facts: &HostFacts) -> String {
    format!("instance {} on {} (VO {})", facts.instance, facts.host, vo_word(facts.vo.as_ref()))
}

/// What the VM's traffic says of its VO.
pub fn scitag(claim: &SciTagClaim) -> String {
    let mut lines = Lines::default();
    let name = claim.name.as_deref().unwrap_or("not in the registry");
    let by = match claim.by {
        SciTagSource::FlowLabel => "flow label",
        SciTagSource::Firefly => "firefly",
    };
    let (experiment, activity, of) = (claim.experiment, claim.activity, claim.conversations);
    let many = if of == 1 { "conversation" } else { "conversations" };
    lines.field("SciTag", format!("experiment {experiment} ({name}), activity {activity}, by {by} of {of} {many}"));
    lines.finish()
}

/// What a guest said about a payload.
pub fn guest_claims(claims: &GuestClaims) -> String {
    let mut lines = Lines::default();
    if let Some(own) = own_traffic(claims.holder) {
        lines.field("holder", own);
        lines.field("run", claims.payload);
        leases_and_times(&mut lines, claims);
        return lines.finish();
    }
    lines.field("user", &claims.user);
    lines.field("trust", claims.trust.as_str());
    if let Some(task) = &claims.task {
        lines.field("signed task", format!("{} by key {}", task.id, task.key));
        lines.field("", "verified by the VM's agent, not by the host");
        lines.field("", format!("statement sha256 {}", task.statement));
        lines.field("", format!("{}, until {}", runs(task.runs), task.expires));
    }
    lines.maybe("token", claims.token.as_ref().map(token));
    lines.field("pilot", &claims.pilot);
    if let Some(access) = &claims.access {
        let caller = access.caller;
        lines.field("asked by", format!("uid {} gid {} pid {} in the VM", caller.uid, caller.gid, caller.pid));
        lines.field("ran as", format!("uid {}", access.runs_as));
    }
    lines.field("payload", format!("{} (run {})", claims.payload_id, claims.payload));
    lines.field("VO claimed", &claims.vo_claimed);
    let file = |file: &vestigo_model::Executable| format!("{} sha256 {}", file.path, file.sha256);
    lines.maybe("executable", claims.executable.as_ref().map(file));
    lines.maybe("read by", claims.interpreter.as_ref().map(file));
    if !claims.command.is_empty() {
        lines.field("command", command(&claims.command));
    }
    leases_and_times(&mut lines, claims);
    let held = claims.isolation.values().filter(|e| e.state == vestigo_model::RuleState::Enforced).count();
    if !claims.isolation.is_empty() {
        lines.field("isolation", format!("{held} of {} rules enforced", claims.isolation.len()));
    }
    lines.finish()
}

/// What the traffic is if it is the VM's own and no user's, by the guest's word.
pub fn own_traffic(holder: Holder) -> Option<&'static str> {
    match holder {
        Holder::Payload => None,
        Holder::Pilot => Some("the guest says: pilot traffic of the VM, no user's payload"),
        Holder::System => Some("the guest says: system traffic of the VM, no user's payload"),
    }
}

fn runs(runs: u32) -> String {
    if runs == 1 { "may run once".to_owned() } else { format!("may run {runs} times") }
}

fn token(token: &vestigo_model::TokenMark) -> String {
    let id = token.id.as_ref().map_or("without jti".to_owned(), |id| format!("jti {id}"));
    let checked =
        if token.verified { "signature checked by the VM's agent, not by the host" } else { "signature not checked" };
    format!("of {} ({}), {id}, {checked}", token.subject, token.issuer)
}

fn leases_and_times(lines: &mut Lines, claims: &GuestClaims) {
    lines.field("lease", if claims.leases.is_empty() { "none".to_owned() } else { join(&claims.leases) });
    lines.field("started", format!("{} (guest's clock {})", claims.start_received, claims.start_claimed));
    match claims.end {
        Some(end) => lines.field("ended", format!("{} ({}; guest's clock {})", end.received, end.exit, end.claimed)),
        None => lines.field("ended", "no end recorded"),
    }
}

/// Arguments as a shell would want them; spaces inside one stay visible.
fn command(arguments: &[String]) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=,+@%".contains(c);
    let quoted = arguments.iter().map(|argument| {
        let simple = !argument.is_empty() && argument.chars().all(plain);
        if simple { argument.clone() } else { format!("'{}'", argument.replace('\'', "'\\''")) }
    });
    quoted.collect::<Vec<_>>().join(" ")
}
