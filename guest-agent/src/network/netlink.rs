//! Interfaces, addresses, neighbours and routes through a route-netlink socket. A socket acts in the namespace it was
//! opened in, whichever thread uses it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, BorrowedFd},
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage},
    link::{
        AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InetDevConf, InfoData, InfoKind, InfoVeth,
        LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
    },
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// What is asked about an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkFacts {
    /// Its number.
    pub index: u32,
    /// Number of the interface that it is one end of a pair with.
    pub peer: u32,
    /// Longest packet.
    pub mtu: u32,
    /// Whether packets can go out by it; the kernel says so a moment after it was raised.
    pub running: bool,
}

/// One end of a pair of interfaces.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its link-layer address; all zero for the kernel's choice.
    pub mac: [u8; 6],
}

/// A change: what to do, and the flags that go with it. Several go to the kernel in one call, see [`Netlink::apply`].
#[derive(Debug)]
pub struct Change(RouteNetlinkMessage, u16);

const NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;

impl Change {
    /// Raises an interface.
    #[must_use]
    pub fn up(index: u32) -> Self {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        Self(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Raises one end of a payload's pair. `quiet6`: it makes itself no IPv6 address. `guard`: the VM's end filters by strict
    /// reverse path, and answers from loopback addresses may leave by it (the packet filter says which).
    #[must_use]
    pub fn raise(index: u32, quiet6: bool, guard: bool) -> Self {
        let Self(message, flags) = Self::up(index);
        let RouteNetlinkMessage::SetLink(mut message) = message else { return Self(message, flags) };
        let mut families = Vec::new();
        if guard {
            let mut conf = InetDevConf::default();
            conf.rp_filter = 1;
            conf.route_localnet = 1;
            families.push(AfSpecUnspec::Inet(vec![AfSpecInet::DevConfRequest(conf)]));
        }
        if quiet6 {
            families.push(AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]));
        }
        if !families.is_empty() {
            message.attributes.push(LinkAttribute::AfSpecUnspec(families));
        }
        Self(RouteNetlinkMessage::SetLink(message), flags)
    }

    /// Gives an interface an address. An IPv6 one is used at once, without asking whether somebody else has it.
    #[must_use]
    pub fn address(index: u32, address: IpAddr, prefix: u8) -> Self {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = prefix;
        message.header.index = index;
        message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
        if address.is_ipv6() {
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        Self(RouteNetlinkMessage::NewAddress(message), NEW)
    }

    /// Takes an address of an IPv4 interface away, and the routes that came with it.
    #[must_use]
    pub fn no_address(index: u32, address: Ipv4Addr, prefix: u8) -> Self {
        match Self::address(index, address.into(), prefix) {
            Self(RouteNetlinkMessage::NewAddress(message), _) => Self(RouteNetlinkMessage::DelAddress(message), 0),
            other => other,
        }
    }

    /// Says for good which link-layer address a neighbour has: nobody asks on the wire.
    #[must_use]
    pub fn neighbour(index: u32, address: IpAddr, mac: [u8; 6]) -> Self {
        let mut message = neighbour(index, address);
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        Self(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Answers on this interface when others ask for the address.
    #[must_use]
    pub fn proxy(index: u32, address: Ipv6Addr) -> Self {
        let mut message = neighbour(index, address.into());
        message.header.flags = NeighbourFlags::Proxy;
        Self(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Answers no more.
    #[must_use]
    pub fn no_proxy(index: u32, address: Ipv6Addr) -> Self {
        let mut message = neighbour(index, address.into());
        message.header.flags = NeighbourFlags::Proxy;
        Self(RouteNetlinkMessage::DelNeighbour(message), 0)
    }

    /// Sends everything of the gateway's family to it.
    #[must_use]
    pub fn default_route(gateway: IpAddr, index: Option<u32>) -> Self {
        let mut message = route(gateway);
        message.attributes.push(RouteAttribute::Gateway(route_address(gateway)));
        message.attributes.extend(index.map(RouteAttribute::Oif));
        Self(RouteNetlinkMessage::NewRoute(message), NEW)
    }

    /// Sends what is for this one address out by an interface.
    #[must_use]
    pub fn host_route(address: Ipv6Addr, index: u32) -> Self {
        let mut message = route(address.into());
        message.header.destination_prefix_length = 128;
        message.attributes = vec![RouteAttribute::Destination(address.into()), RouteAttribute::Oif(index)];
        Self(RouteNetlinkMessage::NewRoute(message), NEW)
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}

fn route(of: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(of);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message
}

fn neighbour(index: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    let address = match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    };
    message.attributes = vec![NeighbourAttribute::Destination(address)];
    message
}

/// A socket.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Netlink").field("sequence", &self.sequence).finish()
    }
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// As socket(2).
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Facts about an interface.
    ///
    /// # Errors
    /// ENODEV when it is not there.
    pub fn link(&mut self, name: &str) -> io::Result<LinkFacts> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.into()));
        let answers = self.request(RouteNetlinkMessage::GetLink(message), 0)?;
        let link = answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        });
        let link = link.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let mut facts = LinkFacts { index: link.header.index, peer: 0, mtu: 1500, running: false };
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::Mtu(mtu) => facts.mtu = *mtu,
                LinkAttribute::Link(peer) => facts.peer = *peer,
                LinkAttribute::OperState(state) => facts.running = *state == State::Up,
                _ => {}
            }
        }
        Ok(facts)
    }

    /// Makes a pair of interfaces, the second one in another namespace from the start.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn veth(&mut self, here: End<'_>, there: End<'_>, namespace: BorrowedFd<'_>, mtu: u32) -> io::Result<()> {
        let end = |end: End<'_>| {
            let mut message = LinkMessage::default();
            // The kernel would make a queue for each processor; a pair uses them for nothing, and they cost.
            message.attributes = vec![
                LinkAttribute::IfName(end.name.into()),
                LinkAttribute::Mtu(mtu),
                LinkAttribute::NumTxQueues(1),
                LinkAttribute::NumRxQueues(1),
            ];
            if end.mac != [0; 6] {
                message.attributes.push(LinkAttribute::Address(end.mac.to_vec()));
            }
            message
        };
        let mut peer = end(there);
        peer.attributes.push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
        let mut message = end(here);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        self.apply(vec![Change(RouteNetlinkMessage::NewLink(message), NEW)])
    }

    /// Removes an interface (and its peer); one that is not there is removed already.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn delete(&mut self, name: &str) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.into()));
        match self.request(RouteNetlinkMessage::DelLink(message), 0) {
            Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Makes changes in one call to the kernel, which tries all of them.
    ///
    /// # Errors
    /// The first one that failed.
    pub fn apply(&mut self, changes: Vec<Change>) -> io::Result<()> {
        let count = changes.len();
        let mut bytes = Vec::new();
        for Change(message, flags) in changes {
            bytes.extend(self.encode(message, flags));
        }
        self.socket.send(&bytes, 0)?;
        let mut result = Ok(());
        for sequence in (0..count).rev().map_while(|back| self.sequence.checked_sub(u32::try_from(back).ok()?)) {
            let answer = self.answer(sequence).map(drop);
            result = result.and(answer);
        }
        result
    }

    fn encode(&mut self, message: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len().next_multiple_of(4)];
        packet.serialize(&mut bytes);
        bytes
    }

    /// Sends one request and collects what comes before its acknowledgement.
    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        let bytes = self.encode(message, flags);
        self.socket.send(&bytes, 0)?;
        self.answer(self.sequence)
    }

    fn answer(&self, sequence: u32) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut answers = Vec::new();
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            if take(&bytes, sequence, &mut answers)? {
                return Ok(answers);
            }
        }
    }
}

/// Takes one datagram; `true` when the acknowledgement was in it.
fn take(bytes: &[u8], sequence: u32, answers: &mut Vec<RouteNetlinkMessage>) -> io::Result<bool> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
        let length = usize::try_from(message.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
        rest = rest.get(length.max(16)..).unwrap_or_default();
        if message.header.sequence_number != sequence {
            continue;
        }
        match message.payload {
            NetlinkPayload::InnerMessage(inner) => answers.push(inner),
            NetlinkPayload::Error(error) => match error.code {
                Some(code) => return Err(io::Error::from_raw_os_error(code.get().saturating_neg())),
                None => return Ok(true),
            },
            NetlinkPayload::Done(_) => return Ok(true),
            _ => {}
        }
    }
    Ok(false)
}
