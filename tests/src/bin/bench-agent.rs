//! `make bench-agent`: figures of the guest agent, one `name: value` a line.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(program) = arguments.next() else {
        eprintln!("usage: bench-agent GUEST-AGENT [GROUP …]; `make bench-agent` builds both and calls it");
        return ExitCode::from(2);
    };
    match vestigo_tests::bench::agent::run(program.as_ref(), &arguments.collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
