//! `make bench-capture`: figures of capture and metering, one `name: value` a line.

use std::process::ExitCode;

fn main() -> ExitCode {
    match vestigo_tests::bench::capture::run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-capture: {error:#}");
            ExitCode::FAILURE
        }
    }
}
