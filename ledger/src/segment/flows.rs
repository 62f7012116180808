//! The table of flows, from rows of the log in the order of a segment.

use std::net::IpAddr;

use arrow::{array::RecordBatch, error::ArrowError};
use vestigo_model::{Direction, EndReason, Expected, Initiator, PayloadUid, Quality, SciTagSource, Timestamp, Tunnel};

use super::{table::Table, tables::address_text};
use crate::flows::{Flows, Map, Place, Row, index};

/// The table. Its columns are documented in `docs/formats/ledger.md`; change both together.
pub(crate) fn build(flows: &Flows) -> Result<RecordBatch, ArrowError> {
    let rows = &flows.rows;
    let mut table = Table::default();
    table.time("first", rows.iter().map(|row| Some(Timestamp::from_nanos(row.first))));
    table.time("last", rows.iter().map(|row| Some(Timestamp::from_nanos(row.last()))));
    place(&mut table, flows);
    table.code("direction", Direction::ALL, Direction::as_str, rows.iter().map(|row| row.direction as i32));
    tuple(&mut table, rows);
    counters(&mut table, rows);
    table.code("end_reason", EndReason::ALL, EndReason::as_str, rows.iter().map(|row| row.end_reason as i32));
    table.code("initiator", Initiator::ALL, Initiator::as_str, rows.iter().map(|row| row.initiator as i32));
    table.code("src_expected", Expected::ALL, Expected::as_str, rows.iter().map(|row| row.src_expected as i32));
    table.coded("nat_ip", Addresses::default(), rows.iter().map(|row| row.post_nat.map(|nat| nat.ip)));
    table.u16("nat_port", rows.iter().map(|row| row.post_nat.map(|nat| nat.port)));
    attribution(&mut table, flows);
    notes(&mut table, rows);
    table.finish()
}

/// Gives each different value a number.
pub(super) trait Coder<T> {
    fn code(&mut self, value: T) -> i32;
    fn words(self) -> Vec<String>;
}

/// Numbers for values that are written out once each.
pub(super) struct Words<T> {
    codes: Map<T, i32>,
    words: Vec<String>,
    text: fn(T) -> String,
}

impl<T: Copy + Eq + std::hash::Hash> Coder<T> for Words<T> {
    fn code(&mut self, value: T) -> i32 {
        *self.codes.entry(value).or_insert_with(|| {
            self.words.push((self.text)(value));
            i32::try_from(self.words.len() - 1).unwrap_or(i32::MAX)
        })
    }
    fn words(self) -> Vec<String> {
        self.words
    }
}

impl<T> Words<T> {
    fn new(text: fn(T) -> String) -> Self {
        Self { codes: Map::default(), words: Vec::new(), text }
    }
}

struct Addresses(Words<IpAddr>);

impl Default for Addresses {
    fn default() -> Self {
        Self(Words::new(address_text))
    }
}

impl Coder<IpAddr> for Addresses {
    fn code(&mut self, value: IpAddr) -> i32 {
        self.0.code(value.to_canonical())
    }
    fn words(self) -> Vec<String> {
        self.0.words
    }
}

fn place(table: &mut Table, flows: &Flows) {
    let mut of_place = |name: &str, text: fn(&Place) -> Option<String>| {
        let mut words: Vec<String> = Vec::new();
        let mut known: Map<String, i32> = Map::default();
        let mut code = |text: String| {
            *known.entry(text).or_insert_with_key(|text: &String| {
                words.push(text.clone());
                i32::try_from(words.len() - 1).unwrap_or(i32::MAX)
            })
        };
        let codes: Vec<Option<i32>> = flows.places.iter().map(|place| text(place).map(&mut code)).collect();
        let keys = flows.rows.iter().map(|row| codes.get(index(row.place)).copied().flatten());
        table.dictionary(name, words, keys);
    };
    of_place("host", |place| Some(place.host.as_str().to_owned()));
    of_place("tap", |place| Some(place.tap.as_str().to_owned()));
    of_place("domain", |place| Some(place.domain.to_string()));
    of_place("instance", |place| Some(place.instance.as_str().to_owned()));
    of_place("vo", |place| place.vo.as_ref().map(|vo| vo.as_str().to_owned()));
}

fn tuple(table: &mut Table, rows: &[Row]) {
    table.coded("orig_ip", Addresses::default(), rows.iter().map(|row| Some(row.orig_ip)));
    table.u16("orig_port", rows.iter().map(|row| Some(row.orig_port)));
    table.coded("resp_ip", Addresses::default(), rows.iter().map(|row| Some(row.resp_ip)));
    table.u16("resp_port", rows.iter().map(|row| Some(row.resp_port)));
    table.u8("proto", rows.iter().map(|row| row.proto));
    table.u16("vlan", rows.iter().map(|row| row.vlan));
}

fn counters(table: &mut Table, rows: &[Row]) {
    table.u64("orig_packets", rows.iter().map(|row| Some(row.orig_packets)));
    table.u64("orig_bytes", rows.iter().map(|row| Some(row.orig_bytes)));
    table.u64("resp_packets", rows.iter().map(|row| Some(row.resp_packets)));
    table.u64("resp_bytes", rows.iter().map(|row| Some(row.resp_bytes)));
    table.u8("orig_flags", rows.iter().map(|row| row.orig_flags));
    table.u8("resp_flags", rows.iter().map(|row| row.resp_flags));
}

fn attribution(table: &mut Table, flows: &Flows) {
    let rows = &flows.rows;
    table.code("quality", Quality::ALL, Quality::as_str, rows.iter().map(|row| row.quality as i32));
    let payloads: Words<PayloadUid> = Words::new(|uid| uid.to_string());
    table.coded("payload", payloads, rows.iter().map(|row| row.payload));
    let reasons = rows.iter().map(|row| i32::try_from(row.reason).ok());
    table.dictionary("reason", flows.reasons.clone(), reasons);
}

/// What few flows have, null for the others. The first segments of version 1 have none of these columns.
fn notes(table: &mut Table, rows: &[Row]) {
    let all = || rows.iter().map(Row::notes);
    table.u16("inner_vlan", all().map(|n| n.inner_vlan));
    table.coded("tunnel", Words::new(str::to_owned), all().map(|n| n.tunnel.map(Tunnel::kind)));
    table.u32("tunnel_id", all().map(|n| n.tunnel.map(Tunnel::id)));
    table.u64("folded_flows", all().map(|n| n.folded.map(|folded| folded.flows)));
    table.u16("folded_last_port", all().map(|n| n.folded.map(|folded| folded.last_port)));
    table.coded("speaks_of_src_ip", Addresses::default(), all().map(|n| n.speaks_of.map(|of| of.src_ip)));
    table.u16("speaks_of_src_port", all().map(|n| n.speaks_of.map(|of| of.src_port)));
    table.coded("speaks_of_dst_ip", Addresses::default(), all().map(|n| n.speaks_of.map(|of| of.dst_ip)));
    table.u16("speaks_of_dst_port", all().map(|n| n.speaks_of.map(|of| of.dst_port)));
    table.maybe_u8("speaks_of_proto", all().map(|n| n.speaks_of.map(|of| of.proto)));
    table.u16("icmp_error", all().map(|n| n.icmp_error));
    table.u16("scitag_experiment", all().map(|n| n.scitag.map(|tag| tag.experiment)));
    table.maybe_u8("scitag_activity", all().map(|n| n.scitag.map(|tag| tag.activity)));
    table.coded(
        "scitag_by",
        Words::new(|by: SciTagSource| by.as_str().to_owned()),
        all().map(|n| n.scitag.map(|tag| tag.by)),
    );
}
