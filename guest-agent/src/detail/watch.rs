//! Two sockets in a payload's network namespace: one asks for what is there, one hears what is gone.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    thread,
    time::Instant,
};

use netlink_sys::{Socket as Netlink, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
    unistd::Pid,
};
use vestigo_model::{Connection, PayloadUid};

use super::{
    diag::{self, Message, Socket},
    inuse::InUse,
    owner::{self, Names, Owner},
    table::{Budget, Counters, Table},
};

/// The kernel never makes a datagram longer than this for a reader that asks for no more.
const DATAGRAM: usize = 32 * 1024;
/// Sockets that one look takes from one dump; a payload that has more is seen at their end only.
const SOCKETS: usize = 8192;
/// Datagrams of news that one look takes.
const NEWS: usize = 4096;

/// One payload's connections.
pub struct Watch {
    namespace: OwnedFd,
    in_use: InUse,
    /// Opened anew after a dump that was not read to its end.
    dump: Option<Netlink>,
    /// `None` where the kernel does not tell.
    news: Option<Netlink>,
    sequence: u32,
    table: Table,
    names: Option<Names>,
    last: Instant,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("table", &self.table).finish_non_exhaustive()
    }
}

impl Watch {
    /// Watches a network namespace from now on. Needs `CAP_SYS_ADMIN` over it.
    ///
    /// # Errors
    /// As setns(2) and socket(2).
    pub fn new(namespace: BorrowedFd<'_>) -> io::Result<Self> {
        let namespace = namespace.try_clone_to_owned()?;
        let (dump, news, in_use) = within(namespace.as_fd(), || Ok((open()?, subscribe().ok(), InUse::open()?)))?;
        Ok(Self {
            namespace,
            in_use,
            dump: Some(dump),
            news,
            sequence: 0,
            table: Table::default(),
            names: None,
            last: Instant::now(),
        })
    }

    /// Whether the kernel tells of connections that were opened and closed between two looks.
    #[must_use]
    pub const fn hears_of_short_ones(&self) -> bool {
        self.news.is_some()
    }

    /// What came of it so far.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.table.counters
    }

    /// The connections that were not told before. `pids` are the payload's processes as the agent numbers them, asked for only
    /// when there is something new; `vm` is shared by all payloads.
    pub fn look(&mut self, payload: PayloadUid, pids: impl FnOnce() -> Vec<Pid>, vm: &mut Budget) -> Vec<Connection> {
        let now = Instant::now();
        self.table.begin(now.saturating_duration_since(self.last));
        self.last = now;
        let mut buffer = Vec::with_capacity(DATAGRAM);
        let mut new = self.gone(&mut buffer, vm);
        let mut take = |table: &mut Table, socket: &Socket| {
            if table.seen(socket, vm) {
                new.push(*socket);
            }
        };
        let dumps = diag::DUMPS.map(|what| self.there(what, &mut buffer, &mut take));
        self.table.end(dumps.iter().all(|dump| matches!(dump, Ok(true))));
        if new.is_empty() {
            return Vec::new();
        }
        self.name(payload, new, &pids())
    }

    /// What is to be told at the end of the payload, when its processes are dead: what was closed since the last look, and what
    /// the kernel still takes leave of.
    pub fn last(&mut self, payload: PayloadUid, vm: &mut Budget) -> Vec<Connection> {
        self.table.begin(self.last.elapsed());
        let mut buffer = Vec::with_capacity(DATAGRAM);
        let mut new = self.gone(&mut buffer, vm);
        let mut left = Vec::new();
        let dumps = diag::DUMPS.map(|what| self.there(what, &mut buffer, &mut |_, socket| left.push(*socket)));
        self.table.counters.incomplete += u64::from(!dumps.iter().all(|dump| matches!(dump, Ok(true))));
        new.extend(left.into_iter().filter(|socket| self.table.gone(socket, vm)));
        self.name(payload, new, &[])
    }

    /// Reads the news.
    fn gone(&mut self, buffer: &mut Vec<u8>, vm: &mut Budget) -> Vec<Socket> {
        let mut new = Vec::new();
        let Some(news) = &self.news else { return new };
        for _ in 0..NEWS {
            match receive(news, buffer) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    self.table.counters.overflows += 1;
                    continue;
                }
                Err(_) => break,
            }
            for message in diag::messages(buffer, None) {
                if let Message::Socket(_, socket) = message
                    && socket.leaves()
                    && self.table.gone(&socket, vm)
                {
                    // Numbers of a socket that is gone are not filled in.
                    new.push(Socket { inode: 0, uid: owner::UNKNOWN, ..socket });
                }
            }
        }
        new
    }

    /// Asks for what is there; whether all of it was seen.
    fn there(
        &mut self,
        what: (u8, u8),
        buffer: &mut Vec<u8>,
        take: &mut impl FnMut(&mut Table, &Socket),
    ) -> io::Result<bool> {
        if !self.in_use.any(what) {
            return Ok(true);
        }
        let socket = match self.dump.take() {
            Some(socket) => socket,
            None => within(self.namespace.as_fd(), open)?,
        };
        self.sequence = self.sequence.wrapping_add(1).max(1);
        socket.send(&diag::request(what, self.sequence), 0)?;
        let mut count = 0;
        while count < SOCKETS {
            receive(&socket, buffer)?;
            for message in diag::messages(buffer, Some(what.1)) {
                match message {
                    Message::Socket(sequence, seen) if sequence == self.sequence => {
                        count += 1;
                        if seen.leaves() {
                            take(&mut self.table, &seen);
                        }
                    }
                    Message::End(sequence, code) if sequence == self.sequence => {
                        self.dump = Some(socket);
                        // A kernel without this protocol or family has no such sockets.
                        return Ok(code == 0 || code == Errno::ENOENT as i32);
                    }
                    _ => {}
                }
            }
        }
        Ok(false)
    }

    fn name(&mut self, payload: PayloadUid, new: Vec<Socket>, pids: &[Pid]) -> Vec<Connection> {
        if self.names.is_none() {
            self.names = Names::find(pids);
        }
        let wanted: BTreeSet<u32> = new.iter().map(|socket| socket.inode).filter(|inode| *inode != 0).collect();
        let owners = owner::find(pids, wanted, self.names.as_ref());
        let users = self.names.as_ref().map(|names| &names.users);
        let mut told = Vec::with_capacity(new.len());
        for socket in new {
            let owner = owners.get(&socket.inode).cloned().unwrap_or_else(|| {
                self.table.counters.nameless += 1;
                Owner::nobody(users.map_or(owner::UNKNOWN, |users| users.inside(socket.uid)))
            });
            told.push(Connection {
                payload,
                proto: socket.proto,
                local: socket.local,
                peer: socket.peer,
                pid: owner.pid,
                uid: owner.uid,
                gid: owner.gid,
                tty: owner.tty,
                executable: owner.executable,
            });
        }
        told
    }
}

/// Does something in another network namespace: by a thread of its own, which ends with it.
fn within<T: Send>(namespace: BorrowedFd<'_>, f: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("detail".into()).stack_size(128 * 1024).spawn_scoped(scope, || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            f()
        })?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread died")))
    })
}

/// A socket acts in the namespace it was opened in, whichever thread uses it.
fn open() -> io::Result<Netlink> {
    let mut socket = Netlink::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

fn subscribe() -> io::Result<Netlink> {
    let mut socket = Netlink::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    for group in diag::GONE {
        socket.add_membership(group)?;
    }
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// The next datagram of the kernel's; what anybody else sends is passed over.
fn receive(socket: &Netlink, buffer: &mut Vec<u8>) -> io::Result<()> {
    loop {
        buffer.clear();
        let (_, from) = socket.recv_from(buffer, 0)?;
        if from.port_number() == 0 {
            return Ok(());
        }
    }
}
