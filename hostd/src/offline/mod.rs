//! `hostd meter FILE…`: the same meter over capture files.

mod args;
pub mod capture_file;
pub(crate) mod show;

use std::{
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use vestigo_model::Timestamp;

use self::{
    capture_file::{CaptureFile, CaptureFileError, Captured},
    show::{Printer, Summary},
};
use crate::{
    decode::Heading,
    meter::{Frame, Meter},
};

pub use args::MeterArgs;

/// Packet time between two askings for what is due.
const PACE: Duration = Duration::from_millis(100);

/// Records held at once.
const RECORDS: usize = 4096;

/// Why files were not metered.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// A file cannot be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is no capture.
    #[error("{} is no pcap or pcapng file", path.display())]
    NotACapture {
        /// Which.
        path: PathBuf,
    },
    /// Records cannot be written.
    #[error("cannot write the records")]
    Write(#[from] io::Error),
}

/// Whether everything was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// To the end of every file.
    Complete,
    /// A file breaks off; what came before was metered.
    Broken,
}

/// Meters the files, one after the other as if they were one: records to `out`, all else to `notes`.
///
/// # Errors
/// [`OfflineError`]. A reader of `out` that has had enough is none.
pub fn run(args: &MeterArgs, out: impl Write, notes: impl Write) -> Result<Outcome, OfflineError> {
    let mut run = Run {
        meter: Meter::new(args.options(), None),
        printer: Printer::new(out, args.json),
        notes,
        summary: Summary::start(),
        asked: Timestamp::from_nanos(i64::MIN),
        due: Vec::new(),
    };
    match run.files(&args.files) {
        Err(OfflineError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Outcome::Complete),
        outcome => outcome,
    }
}

struct Run<O: Write, N: Write> {
    meter: Meter,
    printer: Printer<O>,
    notes: N,
    summary: Summary,
    asked: Timestamp,
    due: Vec<crate::meter::Metered>,
}

impl<O: Write, N: Write> Run<O, N> {
    fn files(&mut self, paths: &[PathBuf]) -> Result<Outcome, OfflineError> {
        let mut outcome = Outcome::Complete;
        for path in paths {
            if let Some(broken) = self.file(path)? {
                writeln!(self.notes, "hostd: {}: {broken}", path.display())?;
                outcome = Outcome::Broken;
            }
        }
        loop {
            self.meter.drain(RECORDS, &mut self.due);
            if self.due.is_empty() {
                break;
            }
            self.print()?;
        }
        self.printer.flush()?;
        self.summary.write(&self.meter.take_counts(), self.printer.flows(), &mut self.notes)?;
        Ok(outcome)
    }

    /// Gives why the file was not read to its end.
    fn file(&mut self, path: &Path) -> Result<Option<CaptureFileError>, OfflineError> {
        let input: Box<dyn Read> = if path == Path::new("-") {
            Box::new(io::stdin().lock())
        } else {
            Box::new(File::open(path).map_err(|source| OfflineError::Open { path: path.into(), source })?)
        };
        let mut file = match CaptureFile::open(input) {
            Ok(file) => file,
            Err(CaptureFileError::NotACapture) => return Err(OfflineError::NotACapture { path: path.into() }),
            Err(error) => return Ok(Some(error)),
        };
        loop {
            match file.next() {
                Ok(Some(captured)) => self.packet(&captured)?,
                Ok(None) => return Ok(None),
                Err(error) => return Ok(Some(error)),
            }
        }
    }

    fn packet(&mut self, captured: &Captured<'_>) -> Result<(), OfflineError> {
        let frame = Frame {
            bytes: captured.bytes,
            wire_len: captured.wire_len,
            vlan: None,
            time: captured.time,
            // There is no VM: whoever sends is as good as one.
            heading: Heading::FromVm,
        };
        self.meter.decoded(&frame, captured.decode());
        if captured.time.since(self.asked) >= PACE || captured.time < self.asked {
            self.asked = captured.time;
            loop {
                self.meter.due(captured.time, RECORDS, &mut self.due);
                if self.due.is_empty() {
                    break;
                }
                self.print()?;
            }
        }
        Ok(())
    }

    fn print(&mut self) -> Result<(), OfflineError> {
        for record in self.due.drain(..) {
            self.printer.record(&record, None)?;
        }
        Ok(())
    }
}
