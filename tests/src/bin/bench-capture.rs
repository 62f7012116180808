//! `make bench-capture`: figures of metering beside other meters, one `name: value` a line.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(program) = arguments.next() else {
        eprintln!("usage: bench-capture HOSTD [GROUP …]; `make bench-capture` builds both and calls it");
        return ExitCode::from(2);
    };
    match vestigo_tests::bench::capture::run(program.as_ref(), &arguments.collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-capture: {error:#}");
            ExitCode::FAILURE
        }
    }
}
