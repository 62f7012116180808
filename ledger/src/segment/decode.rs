//! Columns back into flows.

use std::{path::Path, str::FromStr};

use arrow::{
    array::{Array, ArrowPrimitiveType, AsArray, PrimitiveArray, RecordBatch, StringArray},
    compute::cast,
    datatypes::{DataType, TimestampNanosecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type},
};
use vestigo_model::{Attribution, Flow, FlowNotes, Folded, PostNat, SciTag, SciTagSource, Timestamp, Tunnel, Tuple};

use super::SegmentError;

/// The columns of a batch, by name and type.
pub(crate) struct Columns<'a> {
    batch: &'a RecordBatch,
    path: &'a Path,
}

impl<'a> Columns<'a> {
    pub(crate) const fn new(batch: &'a RecordBatch, path: &'a Path) -> Self {
        Self { batch, path }
    }

    fn error(&self, what: String) -> SegmentError {
        SegmentError::Content { path: self.path.to_owned(), what }
    }

    fn has(&self, name: &str) -> bool {
        self.batch.column_by_name(name).is_some()
    }

    /// Text, whether plain or through a dictionary.
    pub(crate) fn text(&self, name: &str) -> Result<StringArray, SegmentError> {
        let error = || self.error(format!("no text column {name}"));
        let column = self.batch.column_by_name(name).ok_or_else(error)?;
        let plain = cast(column, &DataType::Utf8).map_err(|_| error())?;
        plain.as_string_opt::<i32>().cloned().ok_or_else(error)
    }

    fn number<T: ArrowPrimitiveType>(&self, name: &str) -> Result<PrimitiveArray<T>, SegmentError> {
        let column = self.batch.column_by_name(name).and_then(|column| column.as_primitive_opt::<T>());
        column.cloned().ok_or_else(|| self.error(format!("no column {name} of type {}", T::DATA_TYPE)))
    }
}

/// One column of text, read by row.
struct Texts<'a> {
    name: &'static str,
    values: StringArray,
    columns: &'a Columns<'a>,
}

impl<'a> Texts<'a> {
    fn new(columns: &'a Columns<'a>, name: &'static str) -> Result<Self, SegmentError> {
        Ok(Self { name, values: columns.text(name)?, columns })
    }

    fn maybe(&self, row: usize) -> Option<&str> {
        self.values.is_valid(row).then(|| self.values.value(row))
    }

    fn text(&self, row: usize) -> &str {
        self.maybe(row).unwrap_or_default()
    }

    fn parsed<T: FromStr>(&self, row: usize) -> Result<T, SegmentError> {
        self.text(row).parse().map_err(|_| self.bad(row))
    }

    fn maybe_parsed<T: FromStr>(&self, row: usize) -> Result<Option<T>, SegmentError> {
        self.maybe(row).map(|text| text.parse().map_err(|_| self.bad(row))).transpose()
    }

    fn word<T>(&self, row: usize, from_word: fn(&str) -> Option<T>) -> Result<T, SegmentError> {
        from_word(self.text(row)).ok_or_else(|| self.bad(row))
    }

    fn bad(&self, row: usize) -> SegmentError {
        self.columns.error(format!("{:?} in column {}", self.text(row), self.name))
    }
}

/// The numbers of a batch of flows.
struct Numbers {
    first: PrimitiveArray<TimestampNanosecondType>,
    last: PrimitiveArray<TimestampNanosecondType>,
    ports: [PrimitiveArray<UInt16Type>; 4],
    bytes: [PrimitiveArray<UInt8Type>; 3],
    counters: [PrimitiveArray<UInt64Type>; 4],
}

impl Numbers {
    fn new(columns: &Columns<'_>) -> Result<Self, SegmentError> {
        Ok(Self {
            first: columns.number("first")?,
            last: columns.number("last")?,
            ports: [
                columns.number("orig_port")?,
                columns.number("resp_port")?,
                columns.number("vlan")?,
                columns.number("nat_port")?,
            ],
            bytes: [columns.number("proto")?, columns.number("orig_flags")?, columns.number("resp_flags")?],
            counters: [
                columns.number("orig_packets")?,
                columns.number("orig_bytes")?,
                columns.number("resp_packets")?,
                columns.number("resp_bytes")?,
            ],
        })
    }
}

/// The words of a batch of flows.
struct Words<'a> {
    host: Texts<'a>,
    tap: Texts<'a>,
    domain: Texts<'a>,
    instance: Texts<'a>,
    vo: Texts<'a>,
    direction: Texts<'a>,
    orig_ip: Texts<'a>,
    resp_ip: Texts<'a>,
    end_reason: Texts<'a>,
    initiator: Texts<'a>,
    src_expected: Texts<'a>,
    nat_ip: Texts<'a>,
    quality: Texts<'a>,
    payload: Texts<'a>,
    reason: Texts<'a>,
}

impl<'a> Words<'a> {
    fn new(columns: &'a Columns<'a>) -> Result<Self, SegmentError> {
        let text = |name| Texts::new(columns, name);
        Ok(Self {
            host: text("host")?,
            tap: text("tap")?,
            domain: text("domain")?,
            instance: text("instance")?,
            vo: text("vo")?,
            direction: text("direction")?,
            orig_ip: text("orig_ip")?,
            resp_ip: text("resp_ip")?,
            end_reason: text("end_reason")?,
            initiator: text("initiator")?,
            src_expected: text("src_expected")?,
            nat_ip: text("nat_ip")?,
            quality: text("quality")?,
            payload: text("payload")?,
            reason: text("reason")?,
        })
    }

    fn flow(&self, n: &Numbers, notes: &Notes<'_>, row: usize) -> Result<Flow, SegmentError> {
        let [orig_port, resp_port, vlan, nat_port] = &n.ports;
        let [proto, orig_flags, resp_flags] = &n.bytes;
        let [orig_packets, orig_bytes, resp_packets, resp_bytes] = &n.counters;
        let nat_ip = self.nat_ip.maybe_parsed(row)?;
        Ok(Flow {
            host: self.host.parsed(row)?,
            tap: self.tap.parsed(row)?,
            domain: self.domain.parsed(row)?,
            instance: self.instance.parsed(row)?,
            vo: self.vo.maybe_parsed(row)?,
            direction: self.direction.word(row, vestigo_model::Direction::from_word)?,
            orig_ip: self.orig_ip.parsed(row)?,
            orig_port: orig_port.value(row),
            resp_ip: self.resp_ip.parsed(row)?,
            resp_port: resp_port.value(row),
            proto: proto.value(row),
            vlan: number(vlan, row),
            first: Timestamp::from_nanos(n.first.value(row)),
            last: Timestamp::from_nanos(n.last.value(row)),
            orig_packets: orig_packets.value(row),
            orig_bytes: orig_bytes.value(row),
            resp_packets: resp_packets.value(row),
            resp_bytes: resp_bytes.value(row),
            orig_flags: orig_flags.value(row),
            resp_flags: resp_flags.value(row),
            end_reason: self.end_reason.word(row, vestigo_model::EndReason::from_word)?,
            initiator: self.initiator.word(row, vestigo_model::Initiator::from_word)?,
            src_expected: self.src_expected.word(row, vestigo_model::Expected::from_word)?,
            post_nat: nat_ip.map(|ip| PostNat { ip, port: nat_port.value(row) }),
            notes: notes.row(row)?,
            attribution: Attribution {
                quality: self.quality.word(row, vestigo_model::Quality::from_word)?,
                payload: self.payload.maybe_parsed(row)?,
                reason: self.reason.text(row).to_owned(),
            },
        })
    }
}

/// What few flows have. A segment of an older version has none of these columns.
struct Notes<'a>(Option<NoteColumns<'a>>);

struct NoteColumns<'a> {
    tunnel: Texts<'a>,
    scitag_by: Texts<'a>,
    /// Source and destination of the packet that an ICMP error speaks of.
    speaks_of: [Texts<'a>; 2],
    tunnel_id: PrimitiveArray<UInt32Type>,
    folded_flows: PrimitiveArray<UInt64Type>,
    /// Inner VLAN, last port of a range, ports of the packet spoken of, ICMP error, experiment.
    words: [PrimitiveArray<UInt16Type>; 6],
    /// Protocol of the packet spoken of, activity.
    bytes: [PrimitiveArray<UInt8Type>; 2],
}

impl<'a> Notes<'a> {
    fn new(columns: &'a Columns<'a>) -> Result<Self, SegmentError> {
        if !columns.has("inner_vlan") {
            return Ok(Self(None));
        }
        let text = |name| Texts::new(columns, name);
        Ok(Self(Some(NoteColumns {
            tunnel: text("tunnel")?,
            scitag_by: text("scitag_by")?,
            speaks_of: [text("speaks_of_src_ip")?, text("speaks_of_dst_ip")?],
            tunnel_id: columns.number("tunnel_id")?,
            folded_flows: columns.number("folded_flows")?,
            words: [
                columns.number("inner_vlan")?,
                columns.number("folded_last_port")?,
                columns.number("speaks_of_src_port")?,
                columns.number("speaks_of_dst_port")?,
                columns.number("icmp_error")?,
                columns.number("scitag_experiment")?,
            ],
            bytes: [columns.number("speaks_of_proto")?, columns.number("scitag_activity")?],
        })))
    }

    fn row(&self, row: usize) -> Result<FlowNotes, SegmentError> {
        self.0.as_ref().map_or_else(|| Ok(FlowNotes::default()), |columns| columns.row(row))
    }
}

impl NoteColumns<'_> {
    fn row(&self, row: usize) -> Result<FlowNotes, SegmentError> {
        let [inner_vlan, last_port, _, _, icmp_error, experiment] = &self.words;
        let [_, activity] = &self.bytes;
        let tunnel = self.tunnel.maybe(row).map(|kind| Tunnel::new(kind, self.tunnel_id.value(row)));
        let folded = number(&self.folded_flows, row);
        let by = self.scitag_by.maybe(row).map(|_| self.scitag_by.word(row, SciTagSource::from_word)).transpose()?;
        Ok(FlowNotes {
            inner_vlan: number(inner_vlan, row),
            tunnel: tunnel.map(|tunnel| tunnel.ok_or_else(|| self.tunnel.bad(row))).transpose()?,
            folded: folded.map(|flows| Folded { flows, last_port: last_port.value(row) }),
            speaks_of: self.tuple(row)?,
            icmp_error: number(icmp_error, row),
            scitag: by.map(|by| SciTag { experiment: experiment.value(row), activity: activity.value(row), by }),
        })
    }

    fn tuple(&self, row: usize) -> Result<Option<Tuple>, SegmentError> {
        let [src_ip, dst_ip] = &self.speaks_of;
        let [_, _, src_port, dst_port, ..] = &self.words;
        let [proto, _] = &self.bytes;
        let Some(src) = src_ip.maybe_parsed(row)? else { return Ok(None) };
        Ok(Some(Tuple {
            src_ip: src,
            src_port: src_port.value(row),
            dst_ip: dst_ip.parsed(row)?,
            dst_port: dst_port.value(row),
            proto: proto.value(row),
        }))
    }
}

fn number<T: ArrowPrimitiveType>(column: &PrimitiveArray<T>, row: usize) -> Option<T::Native> {
    column.is_valid(row).then(|| column.value(row))
}

/// The flows of a batch.
pub(crate) fn flows(batch: &RecordBatch, path: &Path) -> Result<Vec<Flow>, SegmentError> {
    let columns = Columns::new(batch, path);
    let numbers = Numbers::new(&columns)?;
    let words = Words::new(&columns)?;
    let notes = Notes::new(&columns)?;
    (0..batch.num_rows()).map(|row| words.flow(&numbers, &notes, row)).collect()
}
