//! Translations by the hypervisor's own NAT, as the kernel's connection tracking tells them.
//!
//! ```text
//!  client A ──── A to B ────► [ host's NAT ] ──── D to C ────► server C
//!           original tuple                    reply tuple, turned round
//! ```
//! Each of the two has a *face* of it: what it sees itself, and what the other side sees. The VM may be either.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{Event, EventKind, HostId, Label, Timestamp};

/// An address and a port. For ICMP as in [`crate::Flow`]: the asker's "port" is the identifier, the other's `type << 8 | code` of
/// the question; 0 where the protocol has none.
pub type End = (IpAddr, u16);

/// Longest time between two tellings of a translation that goes on: whoever asks about a moment must look so far ahead.
pub const TRANSLATION_RETOLD: Duration = Duration::from_secs(600);

/// One conversation, as one of its two ends has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Face {
    /// The end itself.
    pub local: End,
    /// Whom it talks to, by its own packets.
    pub peer: End,
    /// What the other side sees in its place.
    pub public: End,
    /// Who the other side really is.
    pub public_peer: End,
}

impl Face {
    /// Whether the world knows this end under another address or port.
    #[must_use]
    pub fn is_hidden(&self) -> bool {
        self.local != self.public
    }
}

/// A conversation that the host translates. Written as an event where no flow record tells of it, see `docs/formats/ledger.md`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Translation {
    /// The hypervisor.
    pub host: HostId,
    /// Network namespace in which it is translated: `host`, or a name below `/run/netns`.
    pub namespace: Label,
    /// Conntrack zone of the original direction.
    pub zone: u16,
    /// IANA protocol number.
    pub proto: u8,
    /// The client, and whom it believes to talk to.
    pub original: (End, End),
    /// The server, and who it believes its client to be.
    pub reply: (End, End),
    /// It did not exist before; `None` when nobody watched then.
    pub not_before: Option<Timestamp>,
    /// It existed until then at least; exactly, if it has ended.
    pub until: Timestamp,
    /// Whether it had ended.
    pub ended: bool,
    /// Why it is told: `no-flow`, `late`, `several`, `both-ends`.
    pub why: Label,
}

impl Translation {
    /// The client's face and the server's.
    #[must_use]
    pub const fn faces(&self) -> [Face; 2] {
        faces(self.original, self.reply)
    }

    /// As an event.
    #[must_use]
    pub fn event(&self) -> Event {
        let end = |(ip, port): End| SocketAddr::new(ip, port).to_string();
        let mut detail = vec![
            ("namespace", self.namespace.to_string()),
            ("zone", self.zone.to_string()),
            ("proto", self.proto.to_string()),
            ("orig-src", end(self.original.0)),
            ("orig-dst", end(self.original.1)),
            ("reply-src", end(self.reply.0)),
            ("reply-dst", end(self.reply.1)),
            ("ended", if self.ended { "yes" } else { "no" }.to_owned()),
            ("why", self.why.to_string()),
        ];
        detail.extend(self.not_before.map(|time| ("not-before", time.to_string())));
        Event {
            host: self.host.clone(),
            domain: None,
            time: self.until,
            what: EventKind::NatBinding,
            detail: detail.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        }
    }

    /// From its event; `None` for any other event.
    #[must_use]
    pub fn from_event(event: &Event) -> Option<Self> {
        if event.what != EventKind::NatBinding {
            return None;
        }
        let text = |key: &str| event.detail.get(key).map(String::as_str);
        let end = |key: &str| text(key)?.parse::<SocketAddr>().ok().map(|end| (end.ip(), end.port()));
        Some(Self {
            host: event.host.clone(),
            namespace: Label::new(text("namespace")?).ok()?,
            zone: text("zone")?.parse().ok()?,
            proto: text("proto")?.parse().ok()?,
            original: (end("orig-src")?, end("orig-dst")?),
            reply: (end("reply-src")?, end("reply-dst")?),
            not_before: text("not-before").and_then(|time| time.parse().ok()),
            until: event.time,
            ended: text("ended") == Some("yes"),
            why: Label::new(text("why")?).ok()?,
        })
    }
}

/// The client's face and the server's, of the two tuples (source, destination) of a connection.
#[must_use]
pub const fn faces(original: (End, End), reply: (End, End)) -> [Face; 2] {
    let client = Face { local: original.0, peer: original.1, public: reply.1, public_peer: reply.0 };
    let server = Face { local: reply.0, peer: reply.1, public: original.1, public_peer: original.0 };
    [client, server]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn end(text: &str) -> End {
        let end: SocketAddr = text.parse().unwrap();
        (end.ip(), end.port())
    }

    #[test]
    fn each_end_has_its_own_face() {
        // A VM calls out through a masquerade.
        let [client, server] =
            faces((end("10.0.0.5:41000"), end("192.0.2.9:443")), (end("192.0.2.9:443"), end("198.51.100.1:61000")));
        assert_eq!((client.local, client.public), (end("10.0.0.5:41000"), end("198.51.100.1:61000")));
        assert!(client.is_hidden() && !server.is_hidden());
        // Somebody calls a floating address.
        let [client, server] =
            faces((end("192.0.2.9:555"), end("198.51.100.7:22")), (end("10.0.0.5:22"), end("192.0.2.9:555")));
        assert_eq!((server.local, server.public), (end("10.0.0.5:22"), end("198.51.100.7:22")));
        assert!(!client.is_hidden() && server.is_hidden());
        assert_eq!(client.public_peer, end("10.0.0.5:22"));
    }

    #[test]
    fn an_event_says_all_of_it() {
        let translation = Translation {
            host: HostId::new("hv1").unwrap(),
            namespace: Label::new("qrouter-1").unwrap(),
            zone: 7,
            proto: 17,
            original: (end("[fd00::5]:41000"), end("[2001:db8::9]:53")),
            reply: (end("[2001:db8::9]:53"), end("[2001:db8::1]:61000")),
            not_before: Some("2026-11-22T14:00:00Z".parse().unwrap()),
            until: "2026-11-22T14:03:22.5Z".parse().unwrap(),
            ended: true,
            why: Label::new("no-flow").unwrap(),
        };
        assert_eq!(Translation::from_event(&translation.event()), Some(translation.clone()));
        let unknown = Translation { not_before: None, ended: false, ..translation };
        assert_eq!(Translation::from_event(&unknown.event()), Some(unknown.clone()));
        assert_eq!(Translation::from_event(&Event { what: EventKind::AgentHello, ..unknown.event() }), None);
    }
}
