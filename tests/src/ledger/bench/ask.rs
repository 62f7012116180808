//! Questions with known answers, and how long they take.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use vestigo_model::{Label, TimeRange, Timestamp};

use super::{
    super::{
        ask::Vestigo,
        nfdump,
        truth::{Truth, WhoPoint},
        write,
    },
    Bench, Made,
};
use crate::bench::{Times, figure, progress};

const TOLERANCE: Duration = Duration::from_secs(2);
/// nfdump reads everything for each: a few will do.
const PEER_ROUNDS: u64 = 3;

/// All questions over a ledger in a folder.
pub(super) fn questions(bench: &Bench, made: &Made) -> Result<()> {
    let (flows, truth) = (made.flows, Truth::new(&made.site));
    #[allow(clippy::cast_precision_loss)] // Quotients for people.
    let per_flow = |bytes: u64| bytes as f64 / flows as f64;
    figure(&format!("bytes_per_flow_{flows}"), format_args!("{:.2}", per_flow(write::size(&made.folder)?)));
    figure(&format!("flow_files_bytes_per_flow_{flows}"), format_args!("{:.2}", per_flow(flow_files(&made.folder)?)));
    let vestigo = Vestigo::over(&made.folder)?;
    let points = (0..bench.rounds).map(|number| truth.point(number)).collect::<Result<Vec<_>>>()?;

    let begin = Instant::now();
    check_who(&vestigo, &truth, points.first().context("ROUNDS is 0")?)?;
    figure(&format!("first_question_s_{flows}"), format_args!("{:.2}", begin.elapsed().as_secs_f64()));
    for point in points.iter().take(5) {
        check_who(&vestigo, &truth, point)?;
    }
    let who = timed(&vestigo, points.iter().map(who_question))?;
    who.print(&format!("who_{flows}"));

    let users = users(made);
    for user in users.iter().take(3) {
        let known = truth.pilots(&user.1, all(made)?)?;
        ensure!(vestigo.pilots(&user.0, &user.1, all(made)?)? == known, "the pilots of {} are not those", user.1);
    }
    timed(&vestigo, users.iter().map(|user| pilots_question(user, made)))?.print(&format!("pilots_{flows}"));

    if has_flows(&vestigo)? {
        timed(&vestigo, points.iter().map(flows_question))?.print(&format!("flows_{flows}"));
    }
    rss(&vestigo, made, &points, &users)
}

fn all(made: &Made) -> Result<TimeRange> {
    let shape = &made.site.shape;
    let (from, to) = (Timestamp::from_nanos(shape.start()), Timestamp::from_nanos(shape.end() - 1));
    TimeRange::new(from, to).context("a ledger without a day")
}

fn check_who(vestigo: &Vestigo, truth: &Truth<'_>, point: &WhoPoint) -> Result<()> {
    let known = truth.who(point.ip, point.port, TimeRange::around(point.time, TOLERANCE))?;
    let found = vestigo.who(point.time, point.ip, point.port)?;
    ensure!(found == known, "who of {point:?} is {found:?} and should be {known:?}");
    Ok(())
}

/// Users who work much and little.
fn users(made: &Made) -> Vec<(Label, Label)> {
    let of_tenant = |tenant: &super::super::site::Tenant| {
        let some = tenant.users.iter().step_by(60);
        some.map(|user| (user.issuer.clone(), user.subject.clone())).collect::<Vec<_>>()
    };
    made.site.tenants.iter().take(5).flat_map(of_tenant).collect()
}

pub(super) fn who_question(point: &WhoPoint) -> Vec<String> {
    let (time, ip, port) = (point.time.to_string(), point.ip.to_string(), point.port.to_string());
    ["who", "--time", &time, "--ip", &ip, "--port", &port].map(str::to_owned).into()
}

fn pilots_question((issuer, subject): &(Label, Label), made: &Made) -> Vec<String> {
    let (from, to) = (made.site.shape.start(), made.site.shape.end() - 1);
    let (from, to) = (Timestamp::from_nanos(from).to_string(), Timestamp::from_nanos(to).to_string());
    ["pilots", "--user", subject.as_str(), "--issuer", issuer.as_str(), "--from", &from, "--to", &to]
        .map(str::to_owned)
        .into()
}

/// All records of the VM's address, whenever.
fn flows_question(point: &WhoPoint) -> Vec<String> {
    ["flows", "--ip", &point.flow.local().0.to_string()].map(str::to_owned).into()
}

/// Whether this build has the question at all.
fn has_flows(vestigo: &Vestigo) -> Result<bool> {
    let mut help = Command::new(&vestigo.program);
    let found = help.args(["flows", "--help"]).stdout(Stdio::null()).stderr(Stdio::null()).status()?.success();
    if !found {
        progress("vestigo has no question `flows`: not measured");
    }
    Ok(found)
}

/// Each question once to warm up what there is to warm, then once by the clock: process start to its end.
pub(super) fn timed(vestigo: &Vestigo, questions: impl Iterator<Item = Vec<String>>) -> Result<Times> {
    let mut times = Times::default();
    for question in questions {
        let question: Vec<&str> = question.iter().map(String::as_str).collect();
        vestigo.ask(&question)?;
        let begin = Instant::now();
        vestigo.ask(&question)?;
        times.push(begin.elapsed());
    }
    Ok(times)
}

/// The most memory that any of the questions had resident.
fn rss(vestigo: &Vestigo, made: &Made, points: &[WhoPoint], users: &[(Label, Label)]) -> Result<()> {
    let mut most = 0.0_f64;
    let with_flows = has_flows(vestigo)?;
    let of_point = |point: &WhoPoint| [Some(who_question(point)), with_flows.then(|| flows_question(point))];
    let pilots = users.iter().take(3).map(|user| pilots_question(user, made));
    for question in points.iter().take(5).flat_map(of_point).flatten().chain(pilots) {
        let question: Vec<&str> = question.iter().map(String::as_str).collect();
        most = most.max(super::proxy::rss_of(&vestigo.command(&question))?);
    }
    figure(&format!("rss_mb_{}", made.flows), format_args!("{:.1}", most / 1024.0));
    Ok(())
}

fn flow_files(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for date in fs::read_dir(folder)? {
        for host in fs::read_dir(date?.path())? {
            for file in fs::read_dir(host?.path())? {
                let file = file?;
                if file.file_name().to_string_lossy().ends_with("-flows.parquet") {
                    bytes += file.metadata()?.len();
                }
            }
        }
    }
    Ok(bytes)
}

/// The two questions that nfdump can be asked, too: all records of an address, and of an address and port at a time.
pub(super) fn beside_nfdump(bench: &Bench, made: &Made, files: &Path, truth: &Truth<'_>) -> Result<()> {
    let vestigo = Vestigo::over(&made.folder)?;
    let points = (0..bench.rounds.min(PEER_ROUNDS)).map(|number| truth.point(3 * number + 1));
    let points = points.collect::<Result<Vec<_>>>()?;
    let (mut theirs, mut theirs_who) = (Times::default(), Times::default());
    for point in &points {
        let (ip, port) = point.flow.local();
        let everything = files.display().to_string();
        theirs.push(asked(&["-R", &everything], &format!("ip {ip}"))?);
        // The file of the time and the next: a record lies in the file in which it was over.
        let at = |time: Timestamp| nfdump::file(files, time).display().to_string();
        let (first, next) = (at(point.time), at(point.time + Duration::from_secs(300)));
        let mut worst = Duration::ZERO;
        for file in [first, next].iter().filter(|file| Path::new(file).exists()) {
            worst += asked(&["-r", file], &format!("ip {ip} and port {port}"))?;
        }
        theirs_who.push(worst);
    }
    theirs.print("nfdump_flows");
    theirs_who.print("nfdump_who");
    let who = timed(&vestigo, points.iter().map(who_question))?;
    figure("who_ratio_vs_nfdump", format_args!("{:.2}", theirs_who.quantile(0.5) / who.quantile(0.5)));
    if has_flows(&vestigo)? {
        let ours = timed(&vestigo, points.iter().map(flows_question))?;
        figure("query_ratio_vs_nfdump", format_args!("{:.1}", theirs.quantile(0.5) / ours.quantile(0.5)));
    }
    Ok(())
}

fn asked(files: &[&str], filter: &str) -> Result<Duration> {
    let begin = Instant::now();
    let (records, _) = nfdump::ask(files, filter)?;
    let took = begin.elapsed();
    progress(&format!("nfdump finds {records} records of {filter} in {took:?}"));
    Ok(took)
}
