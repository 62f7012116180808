//! `make demo`: the story of an incident on real VMs, each answer compared with what is known to be true.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args_os().len() > 1 {
        eprintln!(
            "demo takes no arguments; it tells its story on VMs of its own (root; `make demo` installs what it needs)"
        );
        return ExitCode::from(2);
    }
    match vestigo_tests::demo::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe demo has failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}
