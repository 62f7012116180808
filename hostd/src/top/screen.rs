//! The terminal: taken over, and given back however the command ends.

use std::{
    io::{self, Read as _, Write as _},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        termios::{self, LocalFlags, SetArg, SpecialCharacterIndices, Termios},
    },
};

/// What somebody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// To see the next numbers: the time is up.
    None,
    /// To leave.
    Quit,
    /// Another order.
    Sort,
    /// The same again: the window has another size.
    Redraw,
}

/// A terminal in our hands.
pub struct Screen {
    before: Termios,
    signals: SignalFd,
}

const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

impl Screen {
    /// Takes the terminal over.
    pub fn enter() -> io::Result<Self> {
        let wanted =
            [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGWINCH].into_iter().collect::<SigSet>();
        wanted.thread_block()?;
        let signals = SignalFd::with_flags(&wanted, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let before = termios::tcgetattr(io::stdin().as_fd())?;
        let screen = Self { before, signals };
        let mut raw = screen.before.clone();
        raw.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
        // A read gives what is there, and does not wait.
        for index in [SpecialCharacterIndices::VMIN, SpecialCharacterIndices::VTIME] {
            raw.control_chars.get_mut(index as usize).into_iter().for_each(|character| *character = 0);
        }
        termios::tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, &raw)?;
        let mut out = io::stdout().lock();
        out.write_all(ENTER.as_bytes())?;
        out.flush()?;
        Ok(screen)
    }

    /// Shows a page in place of the one before.
    pub fn show(&mut self, page: &str) -> io::Result<()> {
        let mut text = String::from("\x1b[H");
        for line in page.lines() {
            text.push_str(line);
            text.push_str("\x1b[K\r\n");
        }
        // The last line break would scroll a page that fills the window.
        text.truncate(text.len().saturating_sub(2));
        text.push_str("\x1b[J");
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// Waits for a key, a signal, or the time.
    pub fn wait(&mut self, time: Duration) -> io::Result<Key> {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let stdin = io::stdin();
            let mut fds =
                [PollFd::new(stdin.as_fd(), PollFlags::POLLIN), PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            if poll(&mut fds, timeout)? == 0 {
                return Ok(Key::None);
            }
            let [keys, _] = fds.map(|fd| fd.any().unwrap_or(false));
            if let Some(signal) = self.signals.read_signal()? {
                let resized = i32::try_from(signal.ssi_signo).is_ok_and(|number| number == Signal::SIGWINCH as i32);
                return Ok(if resized { Key::Redraw } else { Key::Quit });
            }
            if keys {
                let mut byte = [0];
                match (io::stdin().lock().read(&mut byte)?, byte) {
                    // The terminal is gone.
                    (0, _) | (_, [b'q' | b'Q' | 3 | 4]) => return Ok(Key::Quit),
                    (_, [b's' | b'S']) => return Ok(Key::Sort),
                    _ => {}
                }
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Nothing is left to be done if the terminal does not take it.
        let _ = termios::tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, &self.before);
        let mut out = io::stdout().lock();
        let _ = out.write_all(LEAVE.as_bytes());
        let _ = out.flush();
    }
}

/// Columns and lines of the terminal, 80 and 24 where it does not say.
pub fn size() -> (usize, usize) {
    let size = rustix::termios::tcgetwinsize(io::stdout());
    match size {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
        _ => (80, 24),
    }
}
