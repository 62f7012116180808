//! libvirt's domain events, which the `virt` crate does not wrap.
//!
//! The only module of hostd's domain part that holds `unsafe`. The rules that keep it small: callbacks copy what they are
//! given into a [`Sink`] and return; the sink lives as long as libvirt may call (each registration owns one count of its
//! `Arc`, given back by libvirt through [`release`]); everything else is the `virt` crate's safe surface.
#![allow(unsafe_code)]

use std::{
    ffi::{c_char, c_int, c_void},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::SyncSender,
    },
    thread,
    time::Duration,
};

use tokio::sync::mpsc::{Sender, error::TrySendError};
use vestigo_model::{Clock as _, DomainUuid, StopReason, SystemClock};
use virt::connect::Connect;
use virt_sys as sys;

use super::{Change, DomainError};

/// What the supervisor of the connection must hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notice {
    /// The connection is dead.
    Closed,
    /// A change did not fit into the queue.
    Overflow,
    /// The owner is gone.
    Stop,
}

/// Where callbacks put what they are told. Never blocks: libvirt's event loop waits for no one.
#[derive(Debug)]
pub(super) struct Sink {
    changes: Sender<Change>,
    notices: SyncSender<Notice>,
    dropped: AtomicU64,
    overflowing: AtomicBool,
}

impl Sink {
    pub(super) fn new(changes: Sender<Change>, notices: SyncSender<Notice>) -> Self {
        Self { changes, notices, dropped: AtomicU64::new(0), overflowing: AtomicBool::new(false) }
    }

    fn put(&self, change: Change) {
        if let Err(TrySendError::Full(_)) = self.changes.try_send(change) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            // One notice for a whole burst: the supervisor owes one resync, however much was lost.
            if !self.overflowing.swap(true, Ordering::AcqRel) {
                self.notify(Notice::Overflow);
            }
        }
    }

    /// Tells the supervisor. Its queue holds one of each kind and more, so a full one already says what matters.
    pub(super) fn notify(&self, notice: Notice) {
        let _ = self.notices.try_send(notice);
    }

    /// Puts a change that must not be lost; gives up when nobody listens or `stopped` says so.
    pub(super) fn insist(&self, change: &Change, stopped: impl Fn() -> bool) {
        while let Err(TrySendError::Full(_)) = self.changes.try_send(change.clone()) {
            if stopped() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// From here on a loss is worth a new notice.
    pub(super) fn overflow_seen(&self) {
        self.overflowing.store(false, Ordering::Release);
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Registers libvirt's default event loop and runs it on a thread of its own, once per process. Must precede the first
/// connection: a connection opened before would never deliver an event.
pub(super) fn run_loop() -> Result<(), DomainError> {
    static LOOP: OnceLock<Result<(), String>> = OnceLock::new();
    let start = || -> Result<(), String> {
        // Without this libvirt prints every error on stderr besides returning it.
        virt::error::clear_error_callback();
        virt::event::event_register_default_impl().map_err(|error| error.message().to_owned())?;
        let turn = || {
            while virt::event::event_run_default_impl().is_ok() {}
            tracing::warn!("libvirt's event loop failed; it is started again");
            thread::sleep(Duration::from_millis(100));
        };
        let forever = move || -> () {
            loop {
                turn();
            }
        };
        thread::Builder::new()
            .name("libvirt-events".into())
            .spawn(forever)
            .map(drop)
            .map_err(|error| format!("cannot start a thread: {error}"))
    };
    LOOP.get_or_init(start).clone().map_err(|message| DomainError::Libvirt { doing: "start its event loop", message })
}

/// An open connection with its callbacks. Dropping it takes them back and closes it.
pub(super) struct Link {
    connection: Connect,
    callbacks: Vec<c_int>,
    close_callback: bool,
}

impl Link {
    /// Opens a read-write connection and registers for events. The event loop must run already.
    pub(super) fn open(uri: &str, sink: &Arc<Sink>) -> Result<Self, DomainError> {
        let connection = Connect::open(Some(uri)).map_err(DomainError::libvirt("connect"))?;
        let mut link = Self { connection, callbacks: Vec::new(), close_callback: false };
        // Some drivers (test:///) have no keep-alive; a dead socket is then noticed at the next call.
        if let Err(error) = link.connection.set_keep_alive(5, 3) {
            tracing::debug!(error = error.message(), "no keep-alive on the libvirt connection");
        }
        link.watch_close(sink);
        link.watch(sink, sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle_callback(on_lifecycle))?;
        let also: [(sys::virDomainEventID, Generic); 5] = [
            (sys::VIR_DOMAIN_EVENT_ID_REBOOT, on_reboot),
            (sys::VIR_DOMAIN_EVENT_ID_DEVICE_ADDED, device_callback(on_device)),
            (sys::VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, device_callback(on_device)),
            (sys::VIR_DOMAIN_EVENT_ID_METADATA_CHANGE, metadata_callback(on_metadata)),
            // A snapshot, copy or commit changes the files under a disk.
            (sys::VIR_DOMAIN_EVENT_ID_BLOCK_JOB, block_job_callback(on_block_job)),
        ];
        for (event, callback) in also {
            if let Err(error) = link.watch(sink, event, callback) {
                tracing::debug!(event, %error, "this libvirt driver does not report an event; the resync covers it");
            }
        }
        Ok(link)
    }

    /// The connection, for everything that `virt` wraps.
    pub(super) fn connection(&self) -> &Connect {
        &self.connection
    }

    fn watch(&mut self, sink: &Arc<Sink>, event: sys::virDomainEventID, call: Generic) -> Result<(), DomainError> {
        let opaque = Arc::into_raw(Arc::clone(sink)).cast_mut().cast::<c_void>();
        let event = c_int::try_from(event).unwrap_or(c_int::MAX);
        // SAFETY: the connection is open as long as `self`; a null domain means every domain; `opaque` is one count of an
        // `Arc<Sink>`, valid until libvirt gives it to `release`, once. `call` has the type that libvirt documents for `event`.
        let id = unsafe {
            sys::virConnectDomainEventRegisterAny(
                self.connection.as_ptr(),
                std::ptr::null_mut(),
                event,
                Some(call),
                opaque,
                Some(release),
            )
        };
        if id < 0 {
            // Whether libvirt has released the count on this path is not documented: leaking it is the safe reading, and
            // costs nothing, since the sink lives as long as the connection's owner anyway.
            return Err(DomainError::libvirt("register for its events")(virt::error::Error::last_error()));
        }
        self.callbacks.push(id);
        Ok(())
    }

    fn watch_close(&mut self, sink: &Arc<Sink>) {
        // Not the sink itself: drivers without such a callback (test:///) accept it and never give it back.
        let opaque = Box::into_raw(Box::new(sink.notices.clone())).cast::<c_void>();
        let connection = self.connection.as_ptr();
        // SAFETY: as in `watch`; `opaque` is a boxed sender, valid until libvirt gives it to `release_notices`, once.
        let done =
            unsafe { sys::virConnectRegisterCloseCallback(connection, Some(on_close), opaque, Some(release_notices)) };
        self.close_callback = done == 0;
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let connection = self.connection.as_ptr();
        for id in self.callbacks.drain(..) {
            // SAFETY: the connection is still open and `id` came from it. libvirt calls `release` when no callback runs.
            unsafe { sys::virConnectDomainEventDeregisterAny(connection, id) };
        }
        if self.close_callback {
            // SAFETY: as above; the function is the one that was registered.
            unsafe { sys::virConnectUnregisterCloseCallback(connection, Some(on_close)) };
        }
        if let Err(error) = self.connection.close() {
            tracing::debug!(error = error.message(), "closing the libvirt connection");
        }
    }
}

/// libvirt's type for a callback whose true type depends on the event.
type Generic = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void);
type Lifecycle = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void) -> c_int;
type Device = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *const c_char, *mut c_void);
type MetadataChange = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, *const c_char, *mut c_void);

type BlockJob = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *const c_char, c_int, c_int, *mut c_void);

/// The callback as libvirt takes it: its `VIR_DOMAIN_EVENT_CALLBACK` macro does the same cast in C.
fn lifecycle_callback(callback: Lifecycle) -> Generic {
    // SAFETY: function pointers have one size; libvirt casts back to this type before it calls a lifecycle callback.
    unsafe { std::mem::transmute::<Lifecycle, Generic>(callback) }
}

fn device_callback(callback: Device) -> Generic {
    // SAFETY: as above, for device-added and device-removed.
    unsafe { std::mem::transmute::<Device, Generic>(callback) }
}

fn metadata_callback(callback: MetadataChange) -> Generic {
    // SAFETY: as above, for metadata-change.
    unsafe { std::mem::transmute::<MetadataChange, Generic>(callback) }
}

fn block_job_callback(callback: BlockJob) -> Generic {
    // SAFETY: as above, for block-job.
    unsafe { std::mem::transmute::<BlockJob, Generic>(callback) }
}

/// Gives back the count that a registration owned.
unsafe extern "C" fn release(opaque: *mut c_void) {
    // SAFETY: libvirt hands back the pointer that `watch` made with `Arc::into_raw`, once.
    drop(unsafe { Arc::from_raw(opaque.cast_const().cast::<Sink>()) });
}

/// Frees what the close callback owned.
unsafe extern "C" fn release_notices(opaque: *mut c_void) {
    // SAFETY: libvirt hands back the pointer that `watch_close` made with `Box::into_raw`, once.
    drop(unsafe { Box::from_raw(opaque.cast::<SyncSender<Notice>>()) });
}

/// Runs `act` on the sink behind `opaque` with the domain's UUID.
///
/// # Safety
/// `opaque` is a live registration's, `domain` a domain that libvirt lends for the call.
unsafe fn with(domain: sys::virDomainPtr, opaque: *mut c_void, act: impl FnOnce(DomainUuid) -> Change) {
    let mut bytes = [0_u8; 16];
    // SAFETY: the domain is lent by the caller; the buffer has the 16 bytes (VIR_UUID_BUFLEN) that libvirt writes.
    let failed = unsafe { sys::virDomainGetUUID(domain, bytes.as_mut_ptr()) } != 0;
    // SAFETY: the registration still owns its count, so the sink is alive.
    let sink = unsafe { &*opaque.cast_const().cast::<Sink>() };
    if !failed {
        sink.put(act(DomainUuid(uuid::Uuid::from_bytes(bytes))));
    }
}

unsafe extern "C" fn on_lifecycle(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    event: c_int,
    detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: called by libvirt for a live registration, with a domain lent for the call.
    unsafe { with(domain, opaque, |uuid| lifecycle(uuid, event, detail)) };
    0
}

unsafe extern "C" fn on_reboot(_: sys::virConnectPtr, domain: sys::virDomainPtr, opaque: *mut c_void) {
    // SAFETY: as in `on_lifecycle`.
    unsafe { with(domain, opaque, |domain| Change::Rebooted { domain, time: SystemClock.now() }) };
}

unsafe extern "C" fn on_device(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: as in `on_lifecycle`.
    unsafe { with(domain, opaque, |domain| Change::Changed { domain, time: SystemClock.now() }) };
}

unsafe extern "C" fn on_metadata(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _: c_int,
    _: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: as in `on_lifecycle`.
    unsafe { with(domain, opaque, |domain| Change::Changed { domain, time: SystemClock.now() }) };
}

unsafe extern "C" fn on_block_job(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _: *const c_char,
    _: c_int,
    _: c_int,
    opaque: *mut c_void,
) {
    // SAFETY: as in `on_lifecycle`.
    unsafe { with(domain, opaque, |domain| Change::Changed { domain, time: SystemClock.now() }) };
}

unsafe extern "C" fn on_close(_: sys::virConnectPtr, _: c_int, opaque: *mut c_void) {
    // SAFETY: called by libvirt for a live registration, so the boxed sender is alive.
    let _ = unsafe { &*opaque.cast_const().cast::<SyncSender<Notice>>() }.try_send(Notice::Closed);
}

/// libvirt's numbers as a change.
fn lifecycle(domain: DomainUuid, event: c_int, detail: c_int) -> Change {
    let time = SystemClock.now();
    let detail = u32::try_from(detail).unwrap_or(u32::MAX);
    match u32::try_from(event).unwrap_or(u32::MAX) {
        // A wake-up is the same QEMU process going on.
        sys::VIR_DOMAIN_EVENT_STARTED if detail != sys::VIR_DOMAIN_EVENT_STARTED_WAKEUP => {
            Change::Started { domain, time }
        }
        sys::VIR_DOMAIN_EVENT_STOPPED => Change::Stopped { domain, why: stop_reason(detail), time },
        sys::VIR_DOMAIN_EVENT_UNDEFINED if detail == sys::VIR_DOMAIN_EVENT_UNDEFINED_REMOVED => {
            Change::Undefined { domain, time }
        }
        _ => Change::Changed { domain, time },
    }
}

fn stop_reason(detail: u32) -> StopReason {
    match detail {
        sys::VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN => StopReason::Shutdown,
        sys::VIR_DOMAIN_EVENT_STOPPED_DESTROYED => StopReason::Destroyed,
        sys::VIR_DOMAIN_EVENT_STOPPED_CRASHED => StopReason::Crashed,
        sys::VIR_DOMAIN_EVENT_STOPPED_MIGRATED => StopReason::Migrated,
        sys::VIR_DOMAIN_EVENT_STOPPED_SAVED => StopReason::Saved,
        sys::VIR_DOMAIN_EVENT_STOPPED_FAILED => StopReason::Failed,
        _ => StopReason::Unknown,
    }
}
