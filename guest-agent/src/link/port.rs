//! The channel to the hypervisor: a virtio-serial character device, or a Unix socket that stands for it. Never blocks.

use std::{
    fmt, fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{fs::OpenOptionsExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    str::FromStr,
};

use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use vestigo_model::link::PORT_NAME;

/// Where the channel is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The port named [`PORT_NAME`], whenever hostd plugs it in.
    Auto,
    /// This character device.
    Device(PathBuf),
    /// A listening Unix socket.
    Unix(PathBuf),
}

impl FromStr for Target {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let path = |path: &str| Some(PathBuf::from(path)).filter(|p| p.is_absolute());
        let target = match text.strip_prefix("unix:") {
            Some(socket) => path(socket).map(Self::Unix),
            None if text == "auto" => Some(Self::Auto),
            None => path(text).map(Self::Device),
        };
        target.ok_or_else(|| format!("{text:?} is no link; write \"auto\", \"/dev/vport1p1\" or \"unix:/path\""))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => write!(f, "virtio-serial port {PORT_NAME}"),
            Self::Device(path) => write!(f, "{}", path.display()),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// An open channel.
#[derive(Debug)]
pub struct Port {
    fd: OwnedFd,
    /// A socket whose peer is gone stays so; a device only waits for its host to come back.
    socket: bool,
}

/// What a look at the channel showed.
#[derive(Debug, PartialEq, Eq)]
pub enum Look {
    /// The host listens.
    Up,
    /// The device is there, nobody listens at its other end.
    HostAway,
    /// The channel itself is gone.
    Gone,
}

impl Port {
    /// Opens the channel.
    ///
    /// # Errors
    /// It is not there (yet), or somebody else has it.
    pub fn open(target: &Target) -> io::Result<Self> {
        match target {
            Target::Auto => Self::device(&find()?),
            Target::Device(path) => Self::device(path),
            Target::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_nonblocking(true)?;
                Ok(Self { fd: stream.into(), socket: true })
            }
        }
    }

    fn device(path: &Path) -> io::Result<Self> {
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = fs::OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
        Ok(Self { fd: file.into(), socket: false })
    }

    /// Whether the host is there. A device without its host reports a hang-up for as long as that lasts, so the caller
    /// must look again from time to time and not wait for events.
    pub fn look(&self) -> Look {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        let hung = match poll(&mut fds, PollTimeout::ZERO) {
            Ok(_) => {
                fds.iter().any(|f| f.revents().is_some_and(|r| r.intersects(PollFlags::POLLHUP | PollFlags::POLLERR)))
            }
            Err(_) => true,
        };
        if !hung {
            return Look::Up;
        }
        // What the host wrote before it left is of an old conversation. An unplugged device says ENODEV here.
        let mut bytes = [0; 4096];
        loop {
            match nix::unistd::read(&self.fd, &mut bytes) {
                Ok(0) if self.socket => return Look::Gone,
                Ok(0) | Err(Errno::EAGAIN) => return if self.socket { Look::Gone } else { Look::HostAway },
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return Look::Gone,
            }
        }
    }

    /// Reads what is there: `None` when nothing is, zero bytes when the other side is gone.
    ///
    /// # Errors
    /// The channel is broken.
    pub fn read<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
        match nix::unistd::read(&self.fd, buffer) {
            Ok(count) => Ok(Some(buffer.get(..count).unwrap_or_default())),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes as much as fits.
    ///
    /// # Errors
    /// The channel is broken.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match nix::unistd::write(&self.fd, bytes) {
            Ok(count) => Ok(count),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Finds the port by its name: udev's link where udev runs, else the kernel's own list.
fn find() -> io::Result<PathBuf> {
    let link = Path::new("/dev/virtio-ports").join(PORT_NAME);
    if link.exists() {
        return Ok(link);
    }
    for entry in fs::read_dir("/sys/class/virtio-ports")?.flatten() {
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim_end() == PORT_NAME {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("no virtio-serial port {PORT_NAME} yet")))
}
