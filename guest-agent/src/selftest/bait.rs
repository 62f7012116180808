//! What lies in the VM for a payload that breaks out: files, a process with a secret, ways to talk, open ports.

use std::{
    env, fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::unix::{fs::OpenOptionsExt, net::UnixListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use nix::{ifaddrs::getifaddrs, mqueue::mq_unlink, sys::socket::SockaddrStorage, unistd::gethostname};

use super::{
    Orders, VERB,
    inside::{Talk, mark, queue},
    probes::namespaces_of,
};

/// Files and folders of the VM that no payload sees.
const VM: [&str; 7] = ["/etc/shadow", "/etc/machine-id", "/etc/ssh", "/etc/fstab", "/boot", "/root", "/var/log"];

/// All of it; gone when dropped.
pub struct Bait {
    token: String,
    files: Vec<PathBuf>,
    socket: Option<(PathBuf, UnixListener)>,
    ports: Vec<TcpListener>,
    talk: Talk,
    child: Option<Child>,
}

impl Bait {
    /// Lays what can be laid; what cannot, its probe reports as not tested.
    #[must_use]
    pub fn lay(token: &str) -> Self {
        let home = env::var_os("HOME").map(PathBuf::from);
        let folders = ["/tmp", "/var/tmp", "/dev/shm"].map(PathBuf::from).into_iter().chain(home);
        let named = folders
            .flat_map(|folder| [0o644, 0o600].map(|mode| (folder.join(mark(token, &format!("pilot-{mode:o}"))), mode)));
        let files = named.filter_map(|(path, mode)| write(&path, mode).ok().map(|()| path)).collect();
        let path = env::temp_dir().join(mark(token, "pilot-socket"));
        let all = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        let mut child = Command::new("/proc/self/exe");
        child.args([VERB, "linger", &mark(token, "pilot")]).env("SECRET", mark(token, "pilot"));
        child.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self {
            token: token.to_owned(),
            files,
            socket: UnixListener::bind(&path).ok().map(|listener| (path, listener)),
            ports: all.into_iter().filter_map(|address| TcpListener::bind((address, 0)).ok()).collect(),
            talk: Talk::open(token, "pilot"),
            child: child.spawn().ok(),
        }
    }

    /// Where everything is.
    #[must_use]
    pub fn orders(&self) -> Orders {
        let pid = |child: &Child| i32::try_from(child.id()).ok();
        let own = i32::try_from(std::process::id()).ok();
        let of_vm = VM.into_iter().filter(|path| Path::new(path).exists());
        let mut orders = Orders {
            token: self.token.clone(),
            files: of_vm.map(PathBuf::from).collect(),
            pids: self.child.as_ref().and_then(pid).into_iter().chain(own).collect(),
            sockets: self.socket.iter().map(|(path, _)| path.clone()).collect(),
            vm: self.addresses(),
            namespaces: namespaces_of("self"),
            hostname: gethostname().map(|name| name.display().to_string()).unwrap_or_default(),
            ..Orders::default()
        };
        self.talk.laid(self.files.clone()).add_to(&mut orders, "pilot");
        orders
    }

    /// Every address of the VM with the ports that listen on all of them.
    fn addresses(&self) -> Vec<SocketAddr> {
        let of = |address: SockaddrStorage| {
            let four = address.as_sockaddr_in().map(|four| IpAddr::V4(four.ip()));
            four.or_else(|| address.as_sockaddr_in6().map(|six| IpAddr::V6(six.ip())))
        };
        let all = getifaddrs().into_iter().flatten().filter_map(|interface| of(interface.address?));
        let all: Vec<IpAddr> = all.collect();
        let ports = self.ports.iter().filter_map(|listener| listener.local_addr().ok());
        let pairs = ports.flat_map(|port| {
            all.iter()
                .map(move |address| SocketAddr::new(*address, port.port()))
                .filter(move |a| a.is_ipv4() == port.is_ipv4())
        });
        pairs.take(32).collect()
    }
}

fn write(path: &Path, mode: u32) -> io::Result<()> {
    use io::Write;
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(b"a secret of the pilot\n")
}

impl Drop for Bait {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        if self.talk.queue.is_some() {
            let _ = mq_unlink(queue(&self.token, "pilot").as_str());
        }
        let socket = self.socket.take().map(|(path, _)| path);
        self.files.drain(..).chain(socket).for_each(|path| {
            let _ = fs::remove_file(path);
        });
    }
}
