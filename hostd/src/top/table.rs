//! The document as a table. Pure.

use std::cmp::Reverse;

use vestigo_model::Quality;

use super::{Sort, View};
use crate::status::{Status, TapStatus, VmStatus};

/// A column: its heading, whether it is set flush right, how soon it goes when the window is narrow (0 stays), and what it shows.
struct Column {
    heading: &'static str,
    right: bool,
    expendable: u8,
    show: fn(&VmStatus) -> String,
}

const COLUMNS: [Column; 14] = [
    Column { heading: "VM", right: false, expendable: 0, show: |vm| vm.name.to_string() },
    Column {
        heading: "VO",
        right: false,
        expendable: 1,
        show: |vm| vm.vo.as_ref().map_or("-".into(), ToString::to_string),
    },
    Column { heading: "TAPS", right: false, expendable: 8, show: taps },
    Column {
        heading: "OUT p/s",
        right: true,
        expendable: 0,
        show: |vm| short(rates(vm, |tap| tap.rates.packets_from_vm)),
    },
    Column {
        heading: "IN p/s",
        right: true,
        expendable: 0,
        show: |vm| short(rates(vm, |tap| tap.rates.packets_to_vm)),
    },
    Column {
        heading: "OUT B/s",
        right: true,
        expendable: 5,
        show: |vm| short(rates(vm, |tap| tap.rates.bytes_from_vm)),
    },
    Column { heading: "IN B/s", right: true, expendable: 6, show: |vm| short(rates(vm, |tap| tap.rates.bytes_to_vm)) },
    Column { heading: "FLOWS", right: true, expendable: 3, show: |vm| short(flows(vm) as f64) },
    Column { heading: "LOST", right: true, expendable: 2, show: |vm| short(lost(vm) as f64) },
    Column { heading: "FOLDED", right: true, expendable: 7, show: |vm| short(counter_of_taps(vm, "folded") as f64) },
    Column { heading: "LEASED", right: true, expendable: 2, show: leased },
    Column { heading: "PAYL", right: true, expendable: 9, show: |vm| vm.payloads.to_string() },
    Column { heading: "AGENT", right: false, expendable: 4, show: |vm| vm.agent.clone() },
    Column { heading: "DOUBTS", right: true, expendable: 3, show: |vm| short(doubts(vm) as f64) },
];

/// What of a VM's tap was lost.
const LOST: [&str; 2] = ["ring_dropped", "unqueued"];
/// What of a VM one has to wonder about.
const DOUBTS: [&str; 4] = ["outside_every_lease", "spoofed", "mismarked", "contradicting_claims"];

/// A column that is shown: its cells and its width.
type Kept<'a> = (&'a Column, &'a Vec<String>, usize);

/// The page: a summary, the table, and how many VMs found no room.
#[must_use]
pub fn render(status: &Status, view: &View) -> String {
    let mut vms: Vec<&VmStatus> = status.vms.iter().collect();
    sort(&mut vms, view.sort);
    // The summary, the heading, the line of keys and one of VMs left out.
    let room = view.height.map_or(vms.len(), |height| height.saturating_sub(5).max(1));
    let (shown, hidden) = vms.split_at(room.min(vms.len()));
    let mut page = summary(status, view);
    page.push_str(&rows(shown, view));
    if !hidden.is_empty() {
        page.push_str(&format!("… and {} more\n", hidden.len()));
    }
    page
}

fn sort(vms: &mut [&VmStatus], by: Sort) {
    let key = |vm: &VmStatus| match by {
        Sort::Packets => rates(vm, |tap| tap.rates.packets_from_vm + tap.rates.packets_to_vm),
        Sort::Bytes => rates(vm, |tap| tap.rates.bytes_from_vm + tap.rates.bytes_to_vm),
        Sort::Flows => flows(vm) as f64,
        Sort::Lost => lost(vm) as f64,
        Sort::Doubts => doubts(vm) as f64,
        Sort::Name => 0.0,
    };
    vms.sort_by(|a, b| key(b).total_cmp(&key(a)).then_with(|| a.name.cmp(&b.name)));
}

fn summary(status: &Status, view: &View) -> String {
    let packets: f64 =
        status.vms.iter().map(|vm| rates(vm, |tap| tap.rates.packets_from_vm + tap.rates.packets_to_vm)).sum();
    let flows: u64 = status.vms.iter().map(flows).sum();
    let lost: u64 = status.vms.iter().map(lost).sum();
    let of_ledger = |name| status.stages.get("ledger").and_then(|stage| stage.get(name)).copied().unwrap_or(0);
    let memory = status.memory.get("resident").copied().unwrap_or(0);
    let time: String = status.time.to_string().chars().take(19).collect();
    let lines = [
        format!(
            "{} {time}Z  {} VMs  {} packets/s  {} flows",
            status.host,
            status.vms.len(),
            short(packets),
            short(flows as f64)
        ),
        format!(
            "lost: {} at taps, {} records at the ledger; {} records written; {}B in memory",
            short(lost as f64),
            short(of_ledger("flows_lost") as f64),
            short(of_ledger("flows") as f64),
            short(memory as f64)
        ),
    ];
    lines.iter().map(|line| cut(line, view.width.unwrap_or(usize::MAX)) + "\n").collect()
}

fn rows(vms: &[&VmStatus], view: &View) -> String {
    let cells: Vec<Vec<String>> =
        COLUMNS.iter().map(|column| vms.iter().map(|vm| (column.show)(vm)).collect()).collect();
    let width = |(column, cells): (&Column, &Vec<String>)| {
        cells.iter().map(|cell| cell.chars().count()).max().unwrap_or(0).max(column.heading.chars().count())
    };
    let mut kept: Vec<Kept<'_>> = COLUMNS.iter().zip(&cells).map(|both| (both.0, both.1, width(both))).collect();
    let total = |kept: &[Kept<'_>]| kept.iter().map(|(_, _, width)| width + 1).sum::<usize>();
    let most = view.width.unwrap_or(usize::MAX);
    while total(&kept) > most {
        let expendable = kept.iter().enumerate().filter(|(_, (column, ..))| column.expendable > 0);
        let Some((index, _)) = expendable.max_by_key(|(index, (column, ..))| (column.expendable, Reverse(*index)))
        else {
            break;
        };
        kept.remove(index);
    }
    let line = |cell: &dyn Fn(&Kept<'_>) -> String| {
        let cells = kept.iter().map(|column| {
            let text = cell(column);
            let width = column.2;
            if column.0.right { format!("{text:>width$}") } else { format!("{text:<width$}") }
        });
        cut(cells.collect::<Vec<_>>().join(" ").trim_end(), most)
    };
    let heading = line(&|column| column.0.heading.to_owned());
    let mut page = if view.colour { format!("\x1b[7m{heading}\x1b[0m\n") } else { heading + "\n" };
    for (index, vm) in vms.iter().enumerate() {
        let row = line(&|column| column.1.get(index).cloned().unwrap_or_default());
        let doubtful = view.colour && doubts(vm) + lost(vm) > 0;
        page.push_str(&if doubtful { format!("\x1b[33m{row}\x1b[0m\n") } else { row + "\n" });
    }
    page
}

fn taps(vm: &VmStatus) -> String {
    let name = |tap: &TapStatus| if tap.unseen.is_some() { format!("{}!", tap.name) } else { tap.name.to_string() };
    let names: Vec<String> = vm.taps.iter().map(name).collect();
    cut(&names.join(","), 20)
}

/// The share of the records whose payload is certain.
fn leased(vm: &VmStatus) -> String {
    let all: u64 = vm.attribution.iter().map(|share| share.records).sum();
    let leased = vm.attribution.iter().filter(|share| share.quality == Quality::Lease).map(|share| share.records);
    if all == 0 { "-".to_owned() } else { format!("{:.0}%", 100.0 * leased.sum::<u64>() as f64 / all as f64) }
}

fn rates(vm: &VmStatus, of: impl Fn(&TapStatus) -> f64) -> f64 {
    vm.taps.iter().map(of).sum()
}

fn flows(vm: &VmStatus) -> u64 {
    vm.taps.iter().map(|tap| tap.flows).sum()
}

fn lost(vm: &VmStatus) -> u64 {
    vm.taps.iter().flat_map(|tap| LOST.iter().filter_map(|name| tap.counters.get(*name))).sum()
}

fn counter_of_taps(vm: &VmStatus, name: &str) -> u64 {
    vm.taps.iter().filter_map(|tap| tap.counters.get(name)).sum()
}

fn doubts(vm: &VmStatus) -> u64 {
    DOUBTS.iter().map(|name| counter(vm, name)).sum()
}

fn counter(vm: &VmStatus, name: &str) -> u64 {
    vm.counters.get(name).copied().unwrap_or(0)
}

/// A number in at most five characters.
fn short(number: f64) -> String {
    let units = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    match units.into_iter().find(|(size, _)| number >= *size) {
        Some((size, unit)) if number < 10.0 * size => format!("{:.1}{unit}", number / size),
        Some((size, unit)) => format!("{:.0}{unit}", number / size),
        None => format!("{number:.0}"),
    }
}

fn cut(line: &str, most: usize) -> String {
    line.chars().take(most).collect()
}
