//! Flows in the write-ahead log: a batch of rows that name their VM, and the words in them, by number.
//!
//! A busy host writes hundreds of thousands a second: as JSON each would cost more than all the rest that is done with it. A batch is
//! `postcard`'s bytes with the zeros taken out by COBS, between STX and ETX (see [`crate::frame`]). The layout is that of the
//! structs below in their order; it may change with the log's version only (docs/decisions/0070).

use std::{collections::HashMap, net::IpAddr};

use foldhash::quality::RandomState;
use serde::{Deserialize, Serialize};
use vestigo_model::{
    Attribution, Direction, DomainUuid, EndReason, Expected, Flow, FlowNotes, Folded, HostId, Initiator, InstanceId,
    PayloadUid, PostNat, Quality, SciTag, TapName, Timestamp, Tunnel, Tuple, Vo,
};

use crate::frame::{ETX, STX};

/// A map whose keys guests choose, looked into for each flow.
pub(crate) type Map<K, V> = HashMap<K, V, RandomState>;

/// Most rows of a batch: with every text at its longest it stays below [`crate::frame::MAX_PAYLOAD`].
pub(crate) const BATCH: usize = 1024;

/// Where a flow was seen, and whose VM that is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) host: HostId,
    pub(crate) tap: TapName,
    pub(crate) domain: DomainUuid,
    pub(crate) instance: InstanceId,
    pub(crate) vo: Option<Vo>,
}

/// What few flows have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Notes {
    inner_vlan: Option<u16>,
    tunnel: Option<Tunnel>,
    folded: Option<Folded>,
    speaks_of: Option<Tuple>,
    icmp_error: Option<u16>,
    scitag: Option<SciTag>,
}

/// A flow, but for its place and the reason of its attribution, which stand in the batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) place: u32,
    pub(crate) payload: Option<PayloadUid>,
    /// Nanoseconds.
    pub(crate) first: i64,
    /// Nanoseconds from the first packet to the last.
    pub(crate) lasted: i64,
    pub(crate) orig_ip: IpAddr,
    pub(crate) orig_port: u16,
    pub(crate) resp_ip: IpAddr,
    pub(crate) resp_port: u16,
    pub(crate) proto: u8,
    pub(crate) vlan: Option<u16>,
    pub(crate) orig_packets: u64,
    pub(crate) orig_bytes: u64,
    pub(crate) resp_packets: u64,
    pub(crate) resp_bytes: u64,
    pub(crate) orig_flags: u8,
    pub(crate) resp_flags: u8,
    pub(crate) direction: Direction,
    pub(crate) end_reason: EndReason,
    pub(crate) initiator: Initiator,
    pub(crate) src_expected: Expected,
    pub(crate) quality: Quality,
    pub(crate) reason: u32,
    pub(crate) post_nat: Option<PostNat>,
    pub(crate) notes: Option<Box<Notes>>,
}

impl Row {
    pub(crate) const fn last(&self) -> i64 {
        self.first.saturating_add(self.lasted)
    }

    /// What few flows have.
    pub(crate) fn notes(&self) -> FlowNotes {
        self.notes.as_deref().map_or_else(FlowNotes::default, |notes| FlowNotes {
            inner_vlan: notes.inner_vlan,
            tunnel: notes.tunnel,
            folded: notes.folded,
            speaks_of: notes.speaks_of,
            icmp_error: notes.icmp_error,
            scitag: notes.scitag,
        })
    }

    /// Whether the record stands for conversations of addresses that are not told apart: its own says nothing then.
    pub(crate) fn is_of_any_address(&self) -> bool {
        self.own_ip().is_unspecified() && self.notes.as_ref().is_some_and(|notes| notes.folded.is_some())
    }

    /// The VM's own address.
    pub(crate) const fn own_ip(&self) -> IpAddr {
        match self.direction {
            Direction::Outgoing => self.orig_ip,
            Direction::Incoming => self.resp_ip,
        }
    }
}

/// A batch of flows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Flows {
    pub(crate) places: Vec<Place>,
    pub(crate) reasons: Vec<String>,
    pub(crate) rows: Vec<Row>,
}

/// The batch does not hang together.
#[derive(Debug, thiserror::Error)]
#[error("a batch of flows cannot be read")]
pub(crate) struct BadBatch;

impl Flows {
    /// A batch of these flows.
    pub(crate) fn of(flows: &[Flow]) -> Self {
        let mut batch = Self { rows: Vec::with_capacity(flows.len()), ..Self::default() };
        let (mut places, mut reasons) = (Map::default(), Map::default());
        for flow in flows {
            let key = (flow.domain, &flow.tap, &flow.host, &flow.instance, flow.vo.as_ref());
            let place = *places.entry(key).or_insert_with(|| {
                batch.places.push(Place {
                    host: flow.host.clone(),
                    tap: flow.tap.clone(),
                    domain: flow.domain,
                    instance: flow.instance.clone(),
                    vo: flow.vo.clone(),
                });
                number(batch.places.len() - 1)
            });
            let reason = *reasons.entry(flow.attribution.reason.as_str()).or_insert_with(|| {
                batch.reasons.push(flow.attribution.reason.clone());
                number(batch.reasons.len() - 1)
            });
            batch.rows.push(row(flow, place, reason));
        }
        batch
    }

    /// The payload of its frame.
    ///
    /// # Errors
    /// The library's, which only a lack of memory can bring about.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, postcard::Error> {
        let mut bytes = postcard::to_allocvec_cobs(self)?;
        // COBS ends with a zero; ETX stands there instead.
        bytes.pop();
        bytes.insert(0, STX);
        bytes.push(ETX);
        Ok(bytes)
    }

    /// Reads the payload of a frame.
    ///
    /// # Errors
    /// [`BadBatch`]: it is none, or of another version.
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, BadBatch> {
        let inner = payload.strip_prefix(&[STX]).and_then(|rest| rest.strip_suffix(&[ETX])).ok_or(BadBatch)?;
        let mut bytes = inner.to_vec();
        bytes.push(0);
        let batch: Self = postcard::from_bytes_cobs(&mut bytes).map_err(|_| BadBatch)?;
        let (places, reasons) = (batch.places.len(), batch.reasons.len());
        let whole = |row: &Row| index(row.place) < places && index(row.reason) < reasons && row.lasted >= 0;
        if batch.rows.iter().all(whole) { Ok(batch) } else { Err(BadBatch) }
    }

    /// The flows in it.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Flow> {
        self.rows.iter().filter_map(|row| self.flow(row))
    }

    fn flow(&self, row: &Row) -> Option<Flow> {
        let place = self.places.get(index(row.place))?;
        Some(Flow {
            host: place.host.clone(),
            tap: place.tap.clone(),
            domain: place.domain,
            instance: place.instance.clone(),
            vo: place.vo.clone(),
            direction: row.direction,
            orig_ip: row.orig_ip,
            orig_port: row.orig_port,
            resp_ip: row.resp_ip,
            resp_port: row.resp_port,
            proto: row.proto,
            vlan: row.vlan,
            first: Timestamp::from_nanos(row.first),
            last: Timestamp::from_nanos(row.last()),
            orig_packets: row.orig_packets,
            orig_bytes: row.orig_bytes,
            resp_packets: row.resp_packets,
            resp_bytes: row.resp_bytes,
            orig_flags: row.orig_flags,
            resp_flags: row.resp_flags,
            end_reason: row.end_reason,
            initiator: row.initiator,
            src_expected: row.src_expected,
            post_nat: row.post_nat,
            notes: row.notes(),
            attribution: Attribution {
                quality: row.quality,
                payload: row.payload,
                reason: self.reasons.get(index(row.reason))?.clone(),
            },
        })
    }

    /// Takes the rows of another batch.
    pub(crate) fn append(&mut self, other: Self) {
        let mut places: Map<&Place, u32> =
            self.places.iter().enumerate().map(|(at, place)| (place, number(at))).collect();
        let mut fresh = Vec::new();
        let known = self.places.len();
        let map: Vec<u32> = other
            .places
            .iter()
            .map(|place| {
                *places.entry(place).or_insert_with(|| {
                    fresh.push(place.clone());
                    number(known + fresh.len() - 1)
                })
            })
            .collect();
        self.places.append(&mut fresh);
        let words: Vec<u32> = other.reasons.into_iter().map(|reason| self.reason(reason)).collect();
        self.rows.extend(other.rows.into_iter().filter_map(|row| {
            let (place, reason) = (*map.get(index(row.place))?, *words.get(index(row.reason))?);
            Some(Row { place, reason, ..row })
        }));
    }

    /// There are a dozen reasons.
    fn reason(&mut self, reason: String) -> u32 {
        let known = self.reasons.iter().position(|known| *known == reason);
        number(known.unwrap_or_else(|| {
            self.reasons.push(reason);
            self.reasons.len() - 1
        }))
    }

    /// Puts the rows into the order of a segment: by place, payload and time. What belongs together then lies together, which is what
    /// questions ask for and what compresses best. The order is part of the format: see `docs/formats/ledger.md`, "Digest of rows".
    pub(crate) fn sort(&mut self) {
        let mut order: Vec<u32> = (0..self.places.len()).map(number).collect();
        order.sort_by_key(|at| self.places.get(index(*at)).map(canonical));
        let mut rank = vec![0; order.len()];
        for (to, from) in order.iter().enumerate() {
            if let Some(rank) = rank.get_mut(index(*from)) {
                *rank = number(to);
            }
        }
        self.places = order.iter().filter_map(|at| self.places.get(index(*at)).cloned()).collect();
        for row in &mut self.rows {
            row.place = rank.get(index(row.place)).copied().unwrap_or_default();
        }
        self.rows.sort_by(compare);
    }
}

/// The order of places: that of their columns as text, null first.
fn canonical(place: &Place) -> (String, String, String, String, Option<String>) {
    let vo = place.vo.as_ref().map(|vo| vo.as_str().to_owned());
    let domain = place.domain.to_string();
    (place.host.as_str().to_owned(), place.tap.as_str().to_owned(), domain, place.instance.as_str().to_owned(), vo)
}

fn compare(a: &Row, b: &Row) -> std::cmp::Ordering {
    let by_time = (a.place, a.payload, a.first, a.last()).cmp(&(b.place, b.payload, b.first, b.last()));
    // Two conversations of one payload that begin and end in the same nanosecond are rare: texts are compared for them only.
    by_time.then_with(|| {
        let tuple = |row: &Row| {
            let text = crate::segment::tables::address_text;
            (text(row.orig_ip), row.orig_port, text(row.resp_ip), row.resp_port, row.proto, row.vlan)
        };
        let counters = |row: &Row| {
            let packets = (row.orig_packets, row.orig_bytes, row.resp_packets, row.resp_bytes);
            (packets, row.orig_flags, row.resp_flags)
        };
        tuple(a).cmp(&tuple(b)).then_with(|| counters(a).cmp(&counters(b)))
    })
}

fn row(flow: &Flow, place: u32, reason: u32) -> Row {
    let notes = &flow.notes;
    let notes = (!notes.is_empty()).then(|| {
        Box::new(Notes {
            inner_vlan: notes.inner_vlan,
            tunnel: notes.tunnel,
            folded: notes.folded,
            speaks_of: notes.speaks_of,
            icmp_error: notes.icmp_error,
            scitag: notes.scitag,
        })
    });
    // A clock that was set back within a flow: the record spans both readings, so that whoever asks about either finds it. Kept the
    // wrong way round it would touch no moment at all, and the statistics that questions go by would leave it out.
    let (first, last) = (flow.first.min(flow.last).as_nanos(), flow.first.max(flow.last).as_nanos());
    Row {
        place,
        payload: flow.attribution.payload,
        first,
        lasted: last.saturating_sub(first),
        orig_ip: flow.orig_ip,
        orig_port: flow.orig_port,
        resp_ip: flow.resp_ip,
        resp_port: flow.resp_port,
        proto: flow.proto,
        vlan: flow.vlan,
        orig_packets: flow.orig_packets,
        orig_bytes: flow.orig_bytes,
        resp_packets: flow.resp_packets,
        resp_bytes: flow.resp_bytes,
        orig_flags: flow.orig_flags,
        resp_flags: flow.resp_flags,
        direction: flow.direction,
        end_reason: flow.end_reason,
        initiator: flow.initiator,
        src_expected: flow.src_expected,
        quality: flow.attribution.quality,
        reason,
        post_nat: flow.post_nat,
        notes,
    }
}

/// Batches and segments hold far fewer than 2^32 of anything.
pub(crate) fn number(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

pub(crate) fn index(at: u32) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

#[cfg(test)]
#[path = "flows_tests.rs"]
mod tests;
