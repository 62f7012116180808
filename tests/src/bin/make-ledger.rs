//! Writes a generated ledger into a folder: something to try queries, engines and disks on.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use vestigo_tests::ledger::{Shape, Site, write};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("make-ledger: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let usage = "usage: make-ledger FOLDER [FLOWS]; without FLOWS a small one of three hosts and two days";
    let folder = PathBuf::from(arguments.first().context(usage)?);
    let shape = match arguments.get(1) {
        Some(flows) => Shape::of_flows(flows.parse().context(usage)?),
        None => Shape::small(),
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let written = write::ledger(&Site::new(shape)?, &folder, threads, |host| eprint!("\r{host} of {}", shape.hosts))?;
    eprintln!();
    println!("flows: {}", written.flows);
    println!("facts: {}", written.facts);
    println!("segments: {}", written.segments);
    println!("bytes: {}", written.bytes);
    Ok(())
}
