//! `make bench-ledger`: figures of the ledger beside nfdump, one `name: value` a line.

use std::process::ExitCode;

use vestigo_tests::ledger::bench;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.split_first() {
        Some((word, rest)) if word == "rss" => bench::peak_rss(rest),
        Some((word, rest)) if word == "count" => bench::count(rest),
        _ => bench::run(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-ledger: {error:#}");
            ExitCode::FAILURE
        }
    }
}
