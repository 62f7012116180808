use std::{io, os::fd::IntoRawFd as _, time::Duration};

use pnet::datalink::{self, Channel, ChannelType, Config, DataLinkReceiver};
use vestigo_model::{Clock as _, SystemClock};

use super::{Batch, FrameSource, PacketSocket};
use crate::meter::Frame;

/// A guest hands over frames of up to 64 KiB and a header; a smaller buffer would cut them without notice.
const READ_BUFFER: usize = 65_600;
/// Kernel-side queue. At 1 Gbit/s of full frames this is a quarter of a second.
const RECEIVE_BUFFER: usize = 32 << 20;
/// `pnet` waits no longer than that for a frame which is known to be there.
const WAIT: Duration = Duration::from_millis(10);
/// Most frames handed over at once.
const BATCH: u64 = 256;

/// Frames through `pnet_datalink`, one by one. The VLAN tag that the kernel has stripped is not seen.
pub struct PnetSource {
    receiver: Box<dyn DataLinkReceiver>,
    /// The same socket as pnet's, to ask the kernel what pnet does not.
    socket: PacketSocket,
}

impl PnetSource {
    /// Opens the interface with that name and index.
    ///
    /// # Errors
    /// The kernel's: no right, no such interface.
    pub fn open(name: &str, index: u32) -> io::Result<Self> {
        let interface = datalink::interfaces()
            .into_iter()
            .find(|interface| interface.index == index && interface.name == name)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
        let socket = PacketSocket::open()?;
        socket.queue(RECEIVE_BUFFER)?;
        let config = Config {
            read_buffer_size: READ_BUFFER,
            read_timeout: Some(WAIT),
            channel_type: ChannelType::Layer2,
            // As with the ring: a tap has no filter of addresses.
            promiscuous: false,
            // pnet closes it, also when it fails.
            socket_fd: Some(socket.handle()?.into_raw_fd()),
            ..Config::default()
        };
        match datalink::channel(&interface, config)? {
            Channel::Ethernet(_, receiver) => Ok(Self { receiver, socket }),
            _ => Err(io::Error::other("pnet gave no Ethernet channel")),
        }
    }
}

impl FrameSource for PnetSource {
    fn socket(&self) -> &PacketSocket {
        &self.socket
    }

    fn take(&mut self, visit: &mut dyn FnMut(&Frame<'_>)) -> io::Result<Option<Batch>> {
        let mut batch = Batch::default();
        while batch.frames + batch.unreadable < BATCH {
            // An error that waits is told with the next call: what was taken counts.
            let waiting = match self.socket.peek() {
                Err(_) if batch != Batch::default() => break,
                peeked => peeked?,
            };
            let Some((heading, stamp)) = waiting else { break };
            match self.receiver.next() {
                Ok(bytes) => {
                    let time = stamp.unwrap_or_else(|| SystemClock.now());
                    visit(&Frame { bytes, wire_len: bytes.len(), vlan: None, time, heading });
                    batch.frames += 1;
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::Interrupted) => break,
                Err(error) => return Err(error),
            }
        }
        Ok((batch != Batch::default()).then_some(batch))
    }
}
