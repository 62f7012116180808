//! Flows out of what a question has to look at.

use std::{collections::BTreeSet, ops::ControlFlow, sync::Arc};

use vestigo_model::{Fact, Flow, Payload};

use super::{
    pick::Scope,
    query::FlowQuery,
    rows::Test,
    scan::{self, Opened},
};
use crate::{
    catalog::{Blooms, Summary, Wanted},
    entry::Entry,
    error::LedgerError,
    manifest::Kind,
};

/// Most flows that an answer may hold in memory at once.
const MOST: usize = 2_000_000;
/// Filters are kept in the catalog when so many files were read.
const KEEP_AT: usize = 512;

impl Scope<'_> {
    /// The flows that the query wants, by first packet.
    pub(crate) fn flows(&self, query: &FlowQuery) -> Result<Vec<Flow>, LedgerError> {
        let (mut flows, mut more) = (Vec::new(), false);
        self.each_flow(query, &mut |flow| {
            more = flows.len() >= MOST;
            if more {
                return ControlFlow::Break(());
            }
            flows.push(flow);
            ControlFlow::Continue(())
        })?;
        if more {
            return Err(LedgerError::TooMuch { what: "flow records", limit: MOST });
        }
        flows.sort_by_key(|flow| (flow.first, flow.last));
        Ok(flows)
    }

    /// Gives every flow that the query wants.
    pub(crate) fn each_flow(
        &self,
        query: &FlowQuery,
        take: &mut dyn FnMut(Flow) -> ControlFlow<()>,
    ) -> Result<(), LedgerError> {
        let of_host = |one: &&Arc<Summary>| query.host.as_ref().is_none_or(|host| *host == one.host);
        let in_time = |one: &&Arc<Summary>| one.flows.is_some_and(|range| range.overlaps(&query.range));
        let segments: Vec<_> = self.segments.iter().filter(of_host).filter(in_time).map(Arc::clone).collect();
        let mut kept = Vec::new();
        for (segment, known) in self.ruled(Kind::Flows, segments, &filters_of(query)) {
            let Some(source) = self.open(&segment, Kind::Flows)? else { continue };
            let opened = Opened::new(source)?;
            if !known {
                self.keep(&mut kept, &segment, Kind::Flows, &opened)?;
            }
            if opened.flows(query, take)?.is_break() {
                self.ledger.cache.keep(&kept);
                return Ok(());
            }
        }
        self.ledger.cache.keep(&kept);
        for entry in self.entries() {
            if let Entry::Flow(flow) = entry
                && query.matches(flow)
                && take(flow.as_ref().clone()).is_break()
            {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Records that stand for conversations of any address.
    pub(crate) fn floods(&self, query: &FlowQuery) -> Result<Vec<Flow>, LedgerError> {
        let folded = [(&[scan::FOLDED][..], Vec::new())];
        let mut wanted = Vec::new();
        let mut kept = Vec::new();
        for (segment, known) in self.ruled(Kind::Flows, self.segments.clone(), &folded) {
            let in_time = segment.flows.is_some_and(|range| range.overlaps(&query.range));
            if known {
                wanted.push(segment.digest);
            } else if in_time && let Some(source) = self.open(&segment, Kind::Flows)? {
                let opened = Opened::new(source)?;
                self.keep(&mut kept, &segment, Kind::Flows, &opened)?;
                if opened.has_any("folded_flows") {
                    wanted.push(segment.digest);
                }
            }
        }
        self.ledger.cache.keep(&kept);
        self.only(|segment| wanted.contains(&segment.digest)).flows(query)
    }

    /// Every payload record with one of the values in one of the columns, as written: no record's claim is weighed against another's.
    pub(crate) fn payloads_by(
        &self,
        columns: &'static [&'static str],
        values: &[String],
    ) -> Result<Vec<Payload>, LedgerError> {
        let (mut found, mut kept) = (Vec::new(), Vec::new());
        let test = Test { columns, values: values.iter().cloned().collect() };
        let with_claims: Vec<_> = self.segments.iter().filter(|one| one.rows(Kind::Payloads) > 0).cloned().collect();
        for (segment, known) in self.ruled(Kind::Payloads, with_claims, &[(columns, values.to_vec())]) {
            let Some(source) = self.open(&segment, Kind::Payloads)? else { continue };
            let opened = Opened::new(source)?;
            if !known {
                self.keep(&mut kept, &segment, Kind::Payloads, &opened)?;
            }
            opened.facts(None, vec![test.clone()], |record| {
                if let Fact::Payload(payload) = record.fact {
                    found.push(payload);
                }
            })?;
        }
        self.ledger.cache.keep(&kept);
        found.extend(self.live_payloads());
        Ok(found)
    }

    fn live_payloads(&self) -> impl Iterator<Item = Payload> {
        self.entries().filter_map(|entry| match entry {
            Entry::Fact(record) | Entry::Carried(record) => match &record.fact {
                Fact::Payload(payload) => Some(payload.clone()),
                _ => None,
            },
            _ => None,
        })
    }

    /// Only the segments whose payloads' filters do not rule these values out.
    pub(crate) fn ruled_by(&self, columns: &'static [&'static str], values: &[String]) -> Result<Self, LedgerError> {
        let with_claims: Vec<_> = self.segments.iter().filter(|one| one.rows(Kind::Payloads) > 0).cloned().collect();
        let (mut wanted, mut kept) = (BTreeSet::new(), Vec::new());
        for (segment, known) in self.ruled(Kind::Payloads, with_claims, &[(columns, values.to_vec())]) {
            if !known && let Some(source) = self.open(&segment, Kind::Payloads)? {
                let opened = Opened::new(source)?;
                self.keep(&mut kept, &segment, Kind::Payloads, &opened)?;
                let blooms = opened.blooms(columns)?;
                if scan::any_holds(&blooms, columns, values) == Some(false) {
                    continue;
                }
            }
            wanted.insert(segment.digest);
        }
        self.ledger.cache.keep(&kept);
        Ok(self.only(|segment| wanted.contains(&segment.digest)))
    }

    /// The segments that the catalog's filters do not rule out, each with whether they are known at all.
    pub(super) fn ruled(
        &self,
        kind: Kind,
        segments: Vec<Arc<Summary>>,
        filters: &[(&[&str], Vec<String>)],
    ) -> Vec<(Arc<Summary>, bool)> {
        let mut left: Vec<(Arc<Summary>, bool)> = segments.into_iter().map(|one| (one, filters.is_empty())).collect();
        if !self.ledger.cache.is_there() {
            return left;
        }
        for (columns, values) in filters {
            let all: Vec<Arc<Summary>> = left.iter().map(|(one, _)| Arc::clone(one)).collect();
            let verdicts = self.ledger.cache.may_hold(&Wanted { kind, columns, values }, &all);
            left = left
                .into_iter()
                .zip(verdicts)
                .filter(|(_, verdict)| *verdict != Some(false))
                .map(|((one, known), verdict)| (one, known || verdict.is_some()))
                .collect();
        }
        left
    }

    pub(super) fn keep(
        &self,
        kept: &mut Vec<(Arc<Summary>, Kind, Blooms)>,
        segment: &Arc<Summary>,
        kind: Kind,
        opened: &Opened,
    ) -> Result<(), LedgerError> {
        if self.ledger.cache.is_there() {
            kept.push((Arc::clone(segment), kind, scan::filters(opened, kind)?));
            if kept.len() >= KEEP_AT {
                self.ledger.cache.keep(kept);
                kept.clear();
            }
        }
        Ok(())
    }
}

/// What of a query the catalog's filters know.
fn filters_of(query: &FlowQuery) -> Vec<(&'static [&'static str], Vec<String>)> {
    let known = scan::kept(Kind::Flows);
    let tests = query.tests().into_iter();
    let by_filter = tests.filter(|test| test.columns.iter().all(|column| known.contains(column)));
    by_filter.map(|test| (test.columns, texts(test.values))).collect()
}

fn texts(values: BTreeSet<String>) -> Vec<String> {
    values.into_iter().collect()
}
