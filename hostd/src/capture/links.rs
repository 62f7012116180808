//! News of interfaces, from the kernel (rtnetlink(7)): a tap that is made anew under an old name is captured at once, not at
//! the next comparison with libvirt.

use std::{collections::HashMap, io, os::fd::AsFd as _};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::{
    net::if_::if_nameindex,
    poll::{PollFd, PollFlags, poll},
};
use tokio::sync::mpsc;
use vestigo_model::{Clock as _, SystemClock, TapName, Timestamp};

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkNews {
    /// An interface that was not there before, or that had another name.
    Appeared {
        /// Its name.
        name: TapName,
        /// Its index.
        index: u32,
        /// When we were told.
        time: Timestamp,
    },
    /// The kernel had to leave out news: anything may have happened.
    Missed,
}

/// `RTMGRP_LINK` of rtnetlink(7).
const GROUP: u32 = 1;
/// News that may wait for the service; beyond, the kernel's queue fills, and that is told.
const QUEUE: usize = 256;
/// How often it is looked whether somebody listens, in milliseconds.
const PACE: u16 = 5000;
/// A link message is a few KiB.
const BUFFER: usize = 64 << 10;

/// Starts to watch, in a thread that ends soon after the receiver.
///
/// # Errors
/// The kernel's: no netlink socket.
pub fn watch() -> io::Result<mpsc::Receiver<LinkNews>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.set_non_blocking(true)?;
    socket.bind(&SocketAddr::new(0, GROUP))?;
    let mut known = Known::default();
    // After the bind: what appears in between comes as news too, and is known already.
    for interface in &if_nameindex()? {
        known.0.insert(interface.index(), interface.name().to_string_lossy().into_owned());
    }
    let (sender, news) = mpsc::channel(QUEUE);
    std::thread::Builder::new().name("interfaces".into()).spawn(move || follow(&socket, known, &sender))?;
    Ok(news)
}

fn follow(socket: &Socket, mut known: Known, sender: &mpsc::Sender<LinkNews>) {
    let mut buffer = vec![0; BUFFER];
    while !sender.is_closed() {
        let mut waiting = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        let news = match poll(&mut waiting, PACE).map_err(io::Error::from).and_then(|ready| match ready {
            0 => Ok(0),
            _ => socket.recv(&mut buffer.as_mut_slice(), 0),
        }) {
            Ok(length) => known.news(buffer.get(..length).unwrap_or_default(), SystemClock.now()),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => vec![LinkNews::Missed],
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => vec![],
            Err(error) => {
                tracing::error!(%error, "interfaces are not watched any more; a tap made anew is captured after the next comparison with libvirt");
                return;
            }
        };
        // An error means that nobody listens, which ends the loop.
        news.into_iter().for_each(|news| _ = sender.blocking_send(news));
    }
}

/// The interfaces that are there, by index. Pure.
#[derive(Debug, Default)]
struct Known(HashMap<u32, String>);

impl Known {
    fn news(&mut self, mut bytes: &[u8], time: Timestamp) -> Vec<LinkNews> {
        let mut news = Vec::new();
        while let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) {
            match &message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                    news.extend(self.changed(link, time))
                }
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) if is_whole(link) => {
                    self.0.remove(&link.header.index);
                }
                _ => {}
            }
            // Messages are padded to 4 bytes.
            let length = usize::try_from(message.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
            match bytes.get(length..) {
                Some(rest) if length > 0 => bytes = rest,
                _ => break,
            }
        }
        news
    }

    /// Any change of an interface comes as a "new link".
    fn changed(&mut self, link: &LinkMessage, time: Timestamp) -> Option<LinkNews> {
        let named = |attribute: &LinkAttribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        };
        let name = link.attributes.iter().find_map(named).filter(|_| is_whole(link))?;
        let index = link.header.index;
        if self.0.insert(index, name.clone()).as_ref() == Some(&name) {
            return None;
        }
        // A name that no tap can have is nobody's.
        Some(LinkNews::Appeared { name: TapName::new(name).ok()?, index, time })
    }
}

/// What a bridge says of its ports looks the same: an interface that leaves a bridge is "deleted" there.
fn is_whole(link: &LinkMessage) -> bool {
    link.header.interface_family == AddressFamily::Unspec
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use netlink_packet_core::NetlinkHeader;

    use super::*;

    fn message(index: u32, name: &str, family: AddressFamily, wrap: fn(LinkMessage) -> RouteNetlinkMessage) -> Vec<u8> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.interface_family = family;
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(wrap(link)));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len().next_multiple_of(4)];
        message.serialize(&mut bytes);
        bytes
    }

    #[test]
    fn only_what_was_not_there_is_news() {
        let time = Timestamp::from_nanos(7);
        let mut known = Known::default();
        let mut told = |bytes: Vec<u8>| {
            let names = |news: LinkNews| match news {
                LinkNews::Appeared { name, index, .. } => format!("{name} {index}"),
                LinkNews::Missed => "missed".to_owned(),
            };
            known.news(&bytes, time).into_iter().map(names).collect::<Vec<_>>()
        };
        let new = |index, name| message(index, name, AddressFamily::Unspec, RouteNetlinkMessage::NewLink);
        let del = |index, name, family| message(index, name, family, RouteNetlinkMessage::DelLink);
        assert_eq!(told([new(4, "vnet0"), new(4, "vnet0"), new(5, "vnet1")].concat()), ["vnet0 4", "vnet1 5"]);
        assert_eq!(told(del(4, "vnet0", AddressFamily::Bridge)), [""; 0]);
        assert_eq!(told(new(4, "vnet0")), [""; 0], "it only left a bridge");
        assert_eq!(told(del(4, "vnet0", AddressFamily::Unspec)), [""; 0]);
        assert_eq!(told(new(6, "vnet0")), ["vnet0 6"], "made anew");
        assert_eq!(told(new(6, "vnet9")), ["vnet9 6"], "renamed");
        assert_eq!(told(new(7, "no name/for a tap")), [""; 0]);
        let mut cut = new(8, "vnet8");
        cut.truncate(20);
        assert_eq!(told(cut), [""; 0]);
    }
}
