//! `make bench-ledger`: questions over ledgers from 10⁶ to 10⁸ flows, beside nfdump over the same flows, and from S3.
//!
//! Of `who` and `pilots` the first answers are compared with the generator's truth before they are timed: a quick wrong answer is no figure.

mod ask;
mod proxy;
mod s3;

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Shape, Site, nfdump, truth::Truth, write};
use crate::{
    bench::{figure, progress},
    paths,
};

pub use proxy::{count, peak_rss};

/// What can be measured.
const GROUPS: [&str; 3] = ["curve", "nfdump", "s3"];

/// Measures all groups, or those named. `FLOWS` is the largest ledger (10⁸), `S3_FLOWS` the one that is put into S3 (10⁷ at
/// most), `ROUNDS` the number of questions of each kind (20).
///
/// # Errors
/// Whatever keeps a figure from being taken, a wrong answer among it.
pub fn run(groups: &[String]) -> Result<()> {
    if let Some(unknown) = groups.iter().find(|group| !GROUPS.contains(&group.as_str())) {
        bail!("there is no group {unknown}; name some of: {}", GROUPS.join(", "));
    }
    let wanted = |group: &str| groups.is_empty() || groups.iter().any(|wanted| wanted == group);
    let most = number("FLOWS", 100_000_000)?;
    let bench = Bench { folder: paths::target("bench-ledger")?, rounds: number("ROUNDS", 20)?, threads: threads() };
    let sizes: Vec<u64> = [1_000_000, 10_000_000, 100_000_000].into_iter().filter(|size| *size < most).collect();
    for size in sizes.into_iter().chain([most]).filter(|size| wanted("curve") || *size == most) {
        let made = bench.ledger(size)?;
        if wanted("curve") {
            ask::questions(&bench, &made)?;
        }
        if size == most && wanted("nfdump") {
            peer(&bench, &made)?;
        }
    }
    if wanted("s3") {
        s3::run(&bench, &bench.ledger(number("S3_FLOWS", 10_000_000)?.min(most))?)?;
    }
    Ok(())
}

fn number(name: &str, otherwise: u64) -> Result<u64> {
    match env::var(name) {
        Ok(text) => text.replace('_', "").parse().with_context(|| format!("{name}={text} is no number")),
        Err(_) => Ok(otherwise),
    }
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// What every group needs.
struct Bench {
    /// On the disk; ledgers stay there, and are used again.
    folder: PathBuf,
    /// Questions of each kind.
    rounds: u64,
    threads: usize,
}

/// A ledger with what is known of it.
struct Made {
    site: Site,
    /// Its size, for names of figures.
    flows: u64,
    folder: PathBuf,
}

impl Bench {
    /// The ledger of this size; made unless it is there already.
    fn ledger(&self, flows: u64) -> Result<Made> {
        let site = Site::new(Shape::of_flows(flows))?;
        let own = self.folder.join(format!("ledger-{flows}"));
        let (folder, finished) = (own.join("ledger"), own.join("finished"));
        // The version of the format in it: one of an older program is made again.
        let mark = format!("{:?} version {}\n", site.shape, vestigo_ledger::VERSION);
        if fs::read_to_string(&finished).is_ok_and(|found| found == mark) {
            return Ok(Made { site, flows, folder });
        }
        remove(&own)?;
        let begin = Instant::now();
        let shape = site.shape;
        let written = write::ledger(&site, &folder, self.threads, |hosts| {
            if hosts % 20 == 0 {
                progress(&format!("{flows} flows: {hosts} of {} hosts after {:?}", shape.hosts, begin.elapsed()));
            }
        })?;
        ensure!(written.flows == flows, "{} flows were written instead of {flows}", written.flows);
        figure(&format!("build_s_{flows}"), format_args!("{:.1}", begin.elapsed().as_secs_f64()));
        figure(&format!("segments_{flows}"), written.segments);
        fs::write(&finished, mark)?;
        Ok(Made { site, flows, folder })
    }
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// The same flows and questions in nfdump.
fn peer(bench: &Bench, made: &Made) -> Result<()> {
    let own = bench.folder.join(format!("nfdump-{}", made.flows));
    let (folder, finished) = (own.join("files"), own.join("finished"));
    let mark = format!("{:?}\n", made.site.shape);
    if fs::read_to_string(&finished).is_ok_and(|found| found == mark) {
        progress("nfdump's files are there already");
    } else {
        remove(&own)?;
        nfdump::write(&made.site, &folder, bench.threads, |days| progress(&format!("nfdump: {days} days")))?;
        fs::write(&finished, mark)?;
    }
    #[allow(clippy::cast_precision_loss)] // A quotient for people.
    let per_flow = write::size(&folder)? as f64 / made.flows as f64;
    figure("nfdump_bytes_per_flow", format_args!("{per_flow:.1}"));
    ask::beside_nfdump(bench, made, &folder, &Truth::new(&made.site))
}
