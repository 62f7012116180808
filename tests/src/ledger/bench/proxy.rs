//! What a program takes: memory, and bytes over a connection. Both are asked of this program itself, started again.

use std::{
    io::{self, BufRead as _, Read, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};

/// Runs a program and prints how many KiB it, or a program that it started, had resident at most: `bench-ledger rss PROGRAM …`.
///
/// # Errors
/// It cannot be started.
pub fn peak_rss(arguments: &[String]) -> Result<()> {
    let (program, arguments) = arguments.split_first().context("no program is named")?;
    Command::new(program).args(arguments).stdout(Stdio::null()).stdin(Stdio::null()).status()?;
    // All that this process has waited for: the program alone.
    println!("{}", getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss());
    Ok(())
}

/// KiB that the command has resident at most.
pub(super) fn rss_of(command: &Command) -> Result<f64> {
    let mut again = Command::new(std::env::current_exe()?);
    again.arg("rss").arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        again.env(name, value.unwrap_or_default());
    }
    let output = again.stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "cannot measure: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().parse().context("no number of KiB")
}

/// Passes connections on and counts what comes back: `bench-ledger count LISTEN TARGET`. For each line on standard input it
/// says the bytes and the requests since the line before. It ends with standard input.
///
/// # Errors
/// It cannot listen.
pub fn count(arguments: &[String]) -> Result<()> {
    let [listen, target] = arguments else { anyhow::bail!("usage: bench-ledger count LISTEN TARGET") };
    let listener = TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    let counts = Arc::new(Counts::default());
    let (target, counted) = (target.clone(), Arc::clone(&counts));
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let (target, counted) = (target.clone(), Arc::clone(&counted));
            thread::spawn(move || pass(client, &target, &counted));
        }
    });
    for line in io::stdin().lock().lines() {
        line?;
        let (bytes, requests) = (counts.bytes.swap(0, Ordering::SeqCst), counts.requests.swap(0, Ordering::SeqCst));
        println!("{bytes} {requests}");
        io::stdout().flush()?;
    }
    Ok(())
}

#[derive(Default)]
struct Counts {
    bytes: AtomicU64,
    requests: AtomicU64,
}

fn pass(client: TcpStream, target: &str, counts: &Counts) {
    let both = || -> io::Result<()> {
        let server = TcpStream::connect(target)?;
        let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
        thread::scope(|scope| {
            scope.spawn(move || {
                // A request of a reader has no body and so is one write of the client's.
                let _ = copy(&mut from_client, &mut to_server, |_| _ = counts.requests.fetch_add(1, Ordering::SeqCst));
                let _ = to_server.shutdown(Shutdown::Write);
            });
            let add = |bytes| _ = counts.bytes.fetch_add(bytes, Ordering::SeqCst);
            let copied = copy(&mut &server, &mut &client, add);
            let _ = client.shutdown(Shutdown::Both);
            copied
        })
    };
    if let Err(error) = both() {
        eprintln!("a connection ended: {error}");
    }
}

fn copy(from: &mut impl Read, to: &mut impl io::Write, mut counted: impl FnMut(u64)) -> io::Result<()> {
    let mut buffer = [0; 65_536];
    loop {
        let length = from.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        counted(u64::try_from(length).unwrap_or(0));
        to.write_all(buffer.get(..length).unwrap_or_default())?;
    }
}
