//! `make demo`: the story of an incident on real VMs, each answer compared with what is known to be true.

use std::process::ExitCode;

fn main() -> ExitCode {
    match vestigo_tests::demo::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe demo has failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}
