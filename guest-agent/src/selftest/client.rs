//! The side in the VM: lays the baits, starts the payloads, judges what cannot be seen from inside.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::sys::signal::{SigSet, Signal};
use vestigo_model::Exit;

use super::{
    Finding, Orders, Outcome, Verdict,
    bait::Bait,
    broken,
    cli::Selftest,
    held,
    inside::{Done, Farewell, Laid, Ready},
    not_tested,
    payload::{Payload, Program, SHOWN, Start, status},
    probes::{self, Probe, Stage, survivor},
    report::{Report, Subject},
    watch::{Watch, judge, judge6},
};
use crate::{
    cgroup::Limits,
    config::{self, Config},
    network::ipv6::usable,
    protocol::Refusal,
    terminal,
};

/// The users in the record.
const ATTACKER: &str = "selftest";
const VICTIM: &str = "selftest-victim";
/// Longest silence of a payload.
const SILENCE: Duration = Duration::from_secs(30);
/// Longest time for an answer of the agent while payloads take all they can get.
const PROMPT: Duration = Duration::from_secs(2);
const PIDS: u32 = 32;
const MEMORY: u64 = 64 << 20;

/// Runs it. The result is the process's exit code: 0 nothing is broken, 1 something is, 201 to 203 as `exec`.
#[must_use]
pub fn run(options: &Selftest) -> u8 {
    if options.list {
        for probe in probes::all() {
            terminal::print(&format!("{:<20} {:<40} {}\n", probe.name, probe.rules.join(" "), probe.what));
        }
        return 0;
    }
    match examine(options) {
        Ok(report) => {
            if options.json {
                let text = serde_json::to_string(&report).unwrap_or_default() + "\n";
                let _ = io::stdout().write_all(text.as_bytes());
            } else {
                terminal::print(&report.to_string());
            }
            u8::from(!report.holds())
        }
        Err(Refusal { code, reason }) => {
            eprintln!("guest-agent: {reason}");
            code
        }
    }
}

/// The probes that were asked for.
struct Wanted(BTreeSet<&'static str>);

impl Wanted {
    fn new(only: &[String]) -> Result<Self, Refusal> {
        if only.is_empty() {
            return Ok(Self(probes::all().map(|probe| probe.name).collect()));
        }
        let named = |name: &String| {
            let probe = probes::named(name).map(|probe| probe.name);
            probe.ok_or_else(|| {
                Refusal::caller(format!("there is no probe {name:?}; see `guest-agent selftest --list`"))
            })
        };
        only.iter().map(named).collect::<Result<_, _>>().map(Self)
    }

    fn at(&self, stage: Stage) -> Vec<&'static Probe> {
        probes::all().filter(|probe| probe.stage == stage && self.0.contains(probe.name)).collect()
    }
}

fn names(probes: &[&Probe]) -> Vec<String> {
    probes.iter().map(|probe| probe.name.to_owned()).collect()
}

/// Runs the probes.
///
/// # Errors
/// The daemon does not answer, or refuses the payloads.
pub fn examine(options: &Selftest) -> Result<Report, Refusal> {
    let wanted = Wanted::new(&options.only)?;
    let program = Program::find()?;
    let start = Start { socket: &options.socket, program: &program, vo: &options.vo };
    let token = format!("vestigo-{}-{}", std::process::id(), uuid::Uuid::new_v4().simple());
    let bait = Kept::lay(&token)?;
    let mut orders = bait.orders();
    orders.sockets.push(options.socket.clone());
    orders.shown = shown(options);
    orders.peer = options.peer.or_else(gateway);
    orders.peer6 = options.peer6.or_else(gateway6);
    let Attack { mut findings, subject, left } = attack(&start, &wanted, orders)?;
    drop(bait);
    findings.extend(after(&start, &wanted, &token, &left)?);
    findings.extend(limited(&start, &wanted, &token)?);
    let order = |finding: &Finding| probes::all().position(|probe| probe.name == finding.probe);
    findings.sort_by_key(order);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    Ok(Report::new(kernel, subject, findings))
}

/// Signals that would end the selftest.
const ENDING: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// The baits, taken up again also when a signal ends the selftest before its time. Its payloads end with its connections.
struct Kept(Arc<Mutex<Option<Bait>>>);

impl Kept {
    fn lay(token: &str) -> Result<Self, Refusal> {
        let mut mask = SigSet::empty();
        ENDING.into_iter().for_each(|signal| mask.add(signal));
        // Before any other thread: all of them are to leave these signals to the one that waits.
        mask.thread_block().map_err(|e| Refusal::system(format!("signals cannot be watched: {e}")))?;
        let kept = Arc::new(Mutex::new(Some(Bait::lay(token))));
        let shared = Arc::clone(&kept);
        std::thread::spawn(move || {
            if let Ok(signal) = mask.wait() {
                drop(shared.lock().unwrap_or_else(PoisonError::into_inner).take());
                std::process::exit(128 + signal as i32);
            }
        });
        Ok(Self(kept))
    }

    fn orders(&self) -> Orders {
        let bait = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        bait.as_ref().map(Bait::orders).unwrap_or_default()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// What payloads see besides the usual: this program, and what the agent's configuration names if it can be read.
fn shown(options: &Selftest) -> Vec<std::path::PathBuf> {
    let configured = Config::read(Path::new(config::PATH)).map(|config| config.expose).unwrap_or_default();
    let own = Path::new(SHOWN).to_owned();
    options.expose.iter().cloned().chain(configured).chain([own]).collect()
}

/// The VM's way out, from /proc/net/route.
fn gateway() -> Option<Ipv4Addr> {
    let text = fs::read_to_string("/proc/net/route").ok()?;
    let default = text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut gateways = default.filter_map(|fields| match fields.as_slice() {
        [_, "00000000", gateway, ..] => u32::from_str_radix(gateway, 16).ok(),
        _ => None,
    });
    // As it lies in memory: the first number of the address is the lowest byte.
    gateways.find(|gateway| *gateway != 0).map(|gateway| Ipv4Addr::from(gateway.to_le_bytes()))
}

/// The same for IPv6, from /proc/net/ipv6_route. Payloads do not reach a link-local one.
fn gateway6() -> Option<Ipv6Addr> {
    let text = fs::read_to_string("/proc/net/ipv6_route").ok()?;
    let mut gateways = text.lines().filter_map(|line| match line.split_whitespace().collect::<Vec<_>>().as_slice() {
        [to, "00", _, _, gateway, ..] if to.bytes().all(|b| b == b'0') => u128::from_str_radix(gateway, 16).ok(),
        _ => None,
    });
    gateways.find_map(|gateway| Some(Ipv6Addr::from(gateway)).filter(|address| usable(*address)))
}

/// What came of the payload that tries everything.
#[derive(Default)]
struct Attack {
    findings: Vec<Finding>,
    subject: Option<Subject>,
    left: Laid,
}

/// The payload that tries everything, beside one with baits.
fn attack(start: &Start<'_>, wanted: &Wanted, mut orders: Orders) -> Result<Attack, Refusal> {
    let probes = wanted.at(Stage::Attack);
    if probes.is_empty() && wanted.at(Stage::After).is_empty() {
        return Ok(Attack::default());
    }
    let mut victim = start.payload(VICTIM, "victim", Limits::default(), &orders)?;
    let ready = victim.line::<Ready>(SILENCE);
    orders.probes = names(&probes);
    if let Some(Ready { address, port, laid }) = &ready {
        laid.add_to(&mut orders, "victim");
        orders.foreign_address = *address;
        orders.foreign_address6 = victim.address6();
        orders.foreign_port = victim.ports().map(|ports| ports.first);
        orders.neighbours = address.zip(*port).map(SocketAddr::from).into_iter().collect();
    }
    let watch = Watch::start(&orders.token);
    let mut attacker = start.payload(ATTACKER, "run", Limits::default(), &orders)?;
    let (mut findings, left) = collect(&mut attacker, &probes);
    let survivors = survivors(&mut attacker, &orders.token);
    replace(&mut findings, "survivors", survivors);
    match watch {
        Ok(watch) => {
            let seen = watch.seen();
            if let Some(own) = attacker.ports().filter(|_| orders.peer.is_some()) {
                let [spoofed, block] = judge(&seen, own);
                replace(&mut findings, "spoofed-source", spoofed);
                replace(&mut findings, "neighbours-ports", block);
            }
            if let Some(own) = attacker.address6().filter(|_| orders.peer6.is_some()) {
                replace(&mut findings, "spoofed-source-6", judge6(&seen, own));
            }
        }
        Err(error) => {
            for name in ["spoofed-source", "neighbours-ports", "spoofed-source-6"] {
                replace(&mut findings, name, not_tested(format!("only root can look at what leaves the VM: {error}")));
            }
        }
    }
    hear(&mut victim, ready.as_ref(), &mut findings);
    let isolation = std::mem::take(&mut attacker.isolation);
    let subject = Subject { payload: attacker.uid.to_string(), isolation };
    Ok(Attack { findings, subject: Some(subject), left })
}

/// Its findings, and what it leaves; a probe without a finding is broken.
fn collect(payload: &mut Payload, probes: &[&'static Probe]) -> (Vec<Finding>, Laid) {
    let mut findings: Vec<Finding> = Vec::new();
    let mut left = Laid::default();
    while let Some(line) = payload.raw_line(SILENCE) {
        if let Ok(done) = serde_json::from_str::<Done>(&line) {
            left = done.left;
            break;
        }
        if let Ok(finding) = serde_json::from_str::<Finding>(&line) {
            findings.push(finding);
        }
    }
    let silent = |probe: &&&Probe| !findings.iter().any(|finding| finding.probe == probe.name);
    let missing: Vec<Finding> = probes
        .iter()
        .filter(silent)
        .map(|probe| probe.silent(Outcome::Broken, "the payload ended or fell silent before this probe answered"))
        .collect();
    findings.extend(missing);
    (findings, left)
}

/// Only where it was asked for.
fn replace(findings: &mut [Finding], name: &str, Verdict { outcome, detail }: Verdict) {
    if let Some(finding) = findings.iter_mut().find(|finding| finding.probe == name) {
        (finding.outcome, finding.detail) = (outcome, detail);
    }
}

/// Whether a process with this word in its command line lives.
#[must_use]
pub fn lives(word: &str) -> bool {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let holds = |text: Vec<u8>| text.split(|byte| *byte == 0).any(|argument| argument == word.as_bytes());
    entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok()).any(holds)
}

/// Ends the payload, and looks whether what it left behind went with it.
fn survivors(attacker: &mut Payload, token: &str) -> Verdict {
    let word = survivor(token);
    let lived = lives(&word);
    let ended = attacker.end();
    // Its end is said when all are dead: not a moment is granted.
    match ended {
        _ if lives(&word) => broken("it lives on after the end of its payload"),
        Err(Refusal { reason, .. }) => not_tested(format!("the end of the payload was not seen: {reason}")),
        Ok(_) if lived => held("it lived while its payload did, and was dead when its end was reported"),
        Ok(_) => not_tested("the process that was left behind cannot be seen from here; call as root"),
    }
}

/// What the other payload noticed.
fn hear(victim: &mut Payload, ready: Option<&Ready>, findings: &mut [Finding]) {
    let ended = victim.end();
    let farewell = victim.line::<Farewell>(Duration::from_secs(1));
    let baits = ["foreign-files", "shared-memory", "message-queues", "abstract-sockets", "neighbour"];
    match (ready, farewell, ended) {
        (Some(_), Some(Farewell { touched: 0 }), Ok((Exit::Code(0), _))) => {}
        (Some(_), Some(Farewell { touched }), _) if touched > 0 => {
            replace(findings, "neighbour", broken(format!("the other payload was called {touched} times")));
        }
        // Baits that were not there prove nothing.
        _ => baits.iter().for_each(|name| {
            let holds = findings.iter().any(|f| f.probe == *name && f.outcome == Outcome::Held);
            if holds {
                replace(findings, name, not_tested("the other payload with the baits did not live to the end"));
            }
        }),
    }
}

/// A payload that comes after the first, and finds nothing of it.
fn after(start: &Start<'_>, wanted: &Wanted, token: &str, left: &Laid) -> Result<Vec<Finding>, Refusal> {
    let probes = wanted.at(Stage::After);
    if probes.is_empty() {
        return Ok(Vec::new());
    }
    let mut orders = Orders { token: token.to_owned(), probes: names(&probes), ..Orders::default() };
    left.add_to(&mut orders, "residue");
    let mut payload = start.payload(VICTIM, "run", Limits::default(), &orders)?;
    let (findings, _) = collect(&mut payload, &probes);
    let _ = payload.end();
    Ok(findings)
}

/// Bombs, each in a payload with small limits, while the agent is asked how it is.
fn limited(start: &Start<'_>, wanted: &Wanted, token: &str) -> Result<Vec<Finding>, Refusal> {
    let (bombs, client) = (wanted.at(Stage::Limited), wanted.at(Stage::Client));
    if bombs.is_empty() && client.is_empty() {
        return Ok(Vec::new());
    }
    let heart = Heart::listen(start.socket);
    let mut findings = Vec::new();
    let mut went_off = 0;
    for probe in probes::all().filter(|probe| probe.stage == Stage::Limited) {
        let verdict = bomb(start, probe, token)?;
        went_off += usize::from(verdict.outcome != Outcome::NotTested);
        if bombs.iter().any(|wanted| wanted.name == probe.name) {
            findings.push(verdict);
        }
    }
    let slowest = heart.slowest();
    findings.extend(client.iter().map(|probe| {
        probe.finding(match &slowest {
            Err(Refusal { reason, .. }) => broken(format!("it did not answer: {reason}")),
            Ok(slowest) if *slowest > PROMPT => broken(format!("one answer took {} ms", slowest.as_millis())),
            Ok(_) if went_off == 0 => not_tested("nothing pressed it"),
            Ok(slowest) => held(format!("the slowest answer took {} ms", slowest.as_millis())),
        })
    }));
    Ok(findings)
}

fn bomb(start: &Start<'_>, probe: &'static Probe, token: &str) -> Result<Finding, Refusal> {
    let mut orders = Orders { token: token.to_owned(), probes: names(&[probe]), ..Orders::default() };
    let mut limits = Limits::default();
    if probe.name == "fork-bomb" {
        orders.pids_limit = PIDS;
        limits.pids = Some(PIDS);
    } else {
        // A program that is not the system's is copied into the payload's memory.
        orders.memory_limit = MEMORY + 2 * start.program.size;
        limits.memory = Some(orders.memory_limit);
    }
    let mut payload = match start.payload(ATTACKER, "run", limits, &orders) {
        Ok(payload) => payload,
        // Without a limit nothing is set off.
        Err(Refusal { code: crate::protocol::code::SYSTEM, reason }) if reason.contains("cgroup") => {
            return Ok(probe.finding(not_tested(reason)));
        }
        Err(refusal) => return Err(refusal),
    };
    let said = collect(&mut payload, &[probe]).0.into_iter().next();
    let (exit, usage) = payload.end()?;
    let killed = exit == Exit::Signal(nix::libc::SIGKILL) && usage.oom_kills.is_some_and(|kills| kills > 0);
    Ok(match said {
        _ if killed && orders.memory_limit > 0 => probe.finding(held("the kernel ended the payload at its limit")),
        Some(finding) => finding,
        None => probe.finding(broken("it said nothing")),
    })
}

/// Asks the agent how it is, again and again.
struct Heart {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Duration, Refusal>>,
}

impl Heart {
    fn listen(socket: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (flag, socket) = (Arc::clone(&stop), socket.to_owned());
        let thread = std::thread::spawn(move || {
            let mut slowest = Duration::ZERO;
            while !flag.load(Ordering::SeqCst) {
                let asked = Instant::now();
                status(&socket)?;
                slowest = slowest.max(asked.elapsed());
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(slowest)
        });
        Self { stop, thread }
    }

    fn slowest(self) -> Result<Duration, Refusal> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap_or_else(|_| Err(Refusal::system("the thread that asks died")))
    }
}
