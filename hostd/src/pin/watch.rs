//! Hears of deletions: a file whose link count changes fires `IN_ATTRIB` on every watch of its inode.

use std::{
    collections::{BTreeSet, HashMap},
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor},
};

use super::policy::FileId;

/// What was heard.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// Files whose names may have changed.
    pub(super) files: BTreeSet<FileId>,
    /// Too much happened: look at everything.
    pub(super) overflow: bool,
    /// Quarantine may have answered.
    pub(super) answers: bool,
}

/// The watches.
#[derive(Debug)]
pub(super) struct Watch {
    inotify: Inotify,
    files: HashMap<WatchDescriptor, FileId>,
    descriptors: HashMap<FileId, WatchDescriptor>,
    answers: WatchDescriptor,
}

impl Watch {
    /// Also watches the folder in which answers appear.
    pub(super) fn open(answers: &Path) -> nix::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let answers = inotify.add_watch(answers, AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR)?;
        Ok(Self { inotify, files: HashMap::new(), descriptors: HashMap::new(), answers })
    }

    /// Watches the inode behind a pin. Watching it twice is the same as once.
    pub(super) fn add(&mut self, file: FileId, pin: &Path) {
        if self.descriptors.contains_key(&file) {
            return;
        }
        let flags = AddWatchFlags::IN_ATTRIB | AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_DONT_FOLLOW;
        match self.inotify.add_watch(pin, flags) {
            Ok(descriptor) => {
                self.files.insert(descriptor, file);
                self.descriptors.insert(file, descriptor);
            }
            // The rescan covers it, only later.
            Err(error) => {
                tracing::warn!(pin = %pin.display(), %error, "cannot watch a pin; raise fs.inotify.max_user_watches")
            }
        }
    }

    /// Stops watching every other file.
    pub(super) fn retain(&mut self, held: &BTreeSet<FileId>) {
        let (inotify, files) = (&self.inotify, &mut self.files);
        self.descriptors.retain(|file, descriptor| {
            let keep = held.contains(file);
            if !keep {
                files.remove(descriptor);
                // Fails when the inode is gone already, which is as good.
                let _ = inotify.rm_watch(*descriptor);
            }
            keep
        });
    }

    /// Everything heard since the last call. Never blocks.
    pub(super) fn drain(&mut self) -> Heard {
        let mut heard = Heard::default();
        loop {
            let events = match self.inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => return heard,
                Err(Errno::EINTR) => continue,
                Err(error) => {
                    tracing::warn!(%error, "cannot read from inotify; every pin is looked at");
                    heard.overflow = true;
                    return heard;
                }
            };
            for event in events {
                heard.overflow |= event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
                heard.answers |= event.wd == self.answers;
                heard.files.extend(self.files.get(&event.wd));
            }
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}
