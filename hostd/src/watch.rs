//! `hostd watch`: the capture path of the daemon on interfaces that somebody names: ring, thread, meter and queue are the same,
//! only libvirt and the ledger are not there.

mod show;

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use uuid::Uuid;
use vestigo_model::{DomainUuid, HostId, InstanceId, Mac, Tap, TapName};

use crate::{
    capture::{Backend, Capture, Observed, TapCapture, TapQueues, budget::RingOptions},
    daemon::DaemonError,
    meter::{Meter, MeterOptions},
};

/// All interfaces are of the one VM that does not exist.
const NOBODY: DomainUuid = DomainUuid(Uuid::nil());
/// Most records taken at once.
const TURN: usize = 4096;

/// Meter interfaces
#[derive(Debug, Clone, Args)]
pub struct WatchArgs {
    /// Interfaces; on a VM's tap "outgoing" is to the VM
    #[arg(required = true, value_name = "INTERFACE", value_parser = interface)]
    pub interfaces: Vec<TapName>,
    /// One JSON object a line for each flow, and for the counters of each interface at the end
    #[arg(long)]
    pub json: bool,
    /// Print no flows, only the counters
    #[arg(long)]
    pub counters_only: bool,
    /// End after so many seconds
    #[arg(long, value_name = "SECONDS")]
    pub seconds: Option<u64>,
    /// How packets are read
    #[arg(long, value_enum, default_value_t)]
    pub backend: Backend,
    /// Milliseconds that the ring lasts at the rate
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    pub ring_millis: u64,
    /// Packets a second
    #[arg(long, value_name = "N", default_value_t = RingOptions::default().rate, value_parser = clap::value_parser!(u64).range(1000..=10_000_000))]
    pub ring_rate: u64,
    /// Most flows held at once for each interface
    #[arg(long, value_name = "N", default_value_t = MeterOptions::default().max_flows)]
    pub max_flows: usize,
}

fn interface(text: &str) -> Result<TapName, String> {
    TapName::new(text).map_err(|error| error.to_string())
}

/// Runs until SIGINT, SIGTERM, the time is over, or the last interface is gone.
///
/// # Errors
/// [`DaemonError`]: an interface cannot be captured; the output cannot be written.
pub fn run(args: &WatchArgs) -> Result<(), DaemonError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(watch(args))
}

async fn watch(args: &WatchArgs) -> Result<(), DaemonError> {
    let options = RingOptions {
        lasts: Duration::from_millis(args.ring_millis),
        rate: args.ring_rate,
        // Who names interfaces by hand means their rings to be whole.
        memory: u64::MAX,
    };
    let capture = Capture::new(args.backend, options);
    let meter = MeterOptions { max_flows: args.max_flows, ..MeterOptions::default() };
    let queues = Arc::new(TapQueues::default());
    let mut captures = Vec::new();
    for name in &args.interfaces {
        let source = capture.open(name)?;
        let sender = queues.open(Arc::new(observed(name)?));
        captures.push(TapCapture::start(name, source, Meter::new(meter, None), sender)?);
    }
    let mut output = show::Output::new(args.json, !args.counters_only);
    output.ready(&args.interfaces)?;
    follow(args, &queues, &captures, &mut output).await?;
    for (name, mut capture) in args.interfaces.iter().zip(captures) {
        capture.wait();
        output.counters(name, &capture.take_report())?;
    }
    Ok(())
}

/// Prints until all captures have ended.
async fn follow(
    args: &WatchArgs,
    queues: &TapQueues,
    captures: &[TapCapture],
    output: &mut show::Output,
) -> Result<(), DaemonError> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let until = args.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let time_is_over = async {
        match until {
            Some(until) => tokio::time::sleep_until(until.into()).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(time_is_over);
    let mut ending = false;
    while queues.has(NOBODY) {
        tokio::select! {
            _ = term.recv() => ending = true,
            _ = int.recv() => ending = true,
            () = &mut time_is_over, if !ending => ending = true,
            () = queues.woken() => {
                let turn = queues.turn(TURN);
                output.flows(&turn.records)?;
                if turn.more {
                    queues.ring();
                }
            }
        }
        if ending {
            captures.iter().for_each(TapCapture::end);
        }
    }
    Ok(())
}

/// There is no VM: the names say so.
fn observed(name: &TapName) -> io::Result<Observed> {
    let tap = Tap { name: name.clone(), mac: Mac([0; 6]), expected: vec![], not_capturable: None, network: None };
    Ok(Observed {
        host: HostId::new("watch").map_err(io::Error::other)?,
        domain: NOBODY,
        instance: InstanceId::new(name.as_str()).map_err(io::Error::other)?,
        vo: None,
        tap,
    })
}
