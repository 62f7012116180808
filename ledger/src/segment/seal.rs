//! Writing a segment: five Parquet files, each whole or absent, then the manifest, with which the segment begins to exist.

use std::path::Path;

use arrow::array::RecordBatch;
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, Encoding, ZstdLevel},
    errors::ParquetError,
    file::{
        metadata::{KeyValue, SortingColumn},
        properties::{EnabledStatistics, WriterProperties},
    },
    schema::types::ColumnPath,
};
use vestigo_model::{Digest, HostId, TimeRange, Timestamp};

use super::{SegmentError, content::Content, summary, tables};
use crate::{
    durable,
    manifest::{self, FORMAT, FileEntry, Generations, Kind, Manifest, Sealed, VERSION},
    sign::{self, Signer},
};

/// Rows that can be skipped at once by their statistics and bloom filters.
const ROW_GROUP: usize = 128 * 1024;
/// Rows that can be skipped at once by the page index.
const PAGE: usize = 8192;
/// Columns of flows whose next value is near the one before: differences are stored (measured: docs/decisions/0071).
const DELTA: [&str; 3] = ["first", "last", "orig_port"];
/// Columns of flows whose values seldom come again: a dictionary would only be larger. (Byte streams would be smaller still, but
/// Spark's reader does not take them for whole numbers.)
const PLAIN: [&str; 4] = ["orig_packets", "orig_bytes", "resp_packets", "resp_bytes"];
/// Columns that are asked for by value.
const BLOOM: [(Kind, &str); 7] = [
    (Kind::Flows, "orig_ip"),
    (Kind::Flows, "resp_ip"),
    (Kind::Flows, "nat_ip"),
    (Kind::Flows, "domain"),
    (Kind::Flows, "payload"),
    (Kind::Payloads, "payload"),
    (Kind::Payloads, "user"),
];

/// What a segment is made from, and its place in the chain.
pub(crate) struct Order<'a> {
    pub(crate) root: &'a Path,
    pub(crate) host: &'a HostId,
    pub(crate) sequence: u64,
    pub(crate) previous: Digest,
    pub(crate) wal: Generations,
    pub(crate) now: Timestamp,
    pub(crate) signer: Option<&'a Signer>,
}

/// Writes the segment. `step` is called before every durable step: tests crash there.
pub(crate) fn write(
    order: &Order<'_>,
    content: &Content,
    step: &mut dyn FnMut(&str) -> Result<(), SegmentError>,
) -> Result<Sealed, SegmentError> {
    let first = content.first().unwrap_or(order.now);
    let span = content.span().unwrap_or(TimeRange { from: first, to: first });
    let folder = manifest::folder_of(order.root, order.host, span);
    let segment = manifest::segment_name(order.sequence, first);
    durable::create_folder(&folder)?;
    // A date folder made a moment ago must not vanish in a power cut while its segment's log is removed.
    folder.parent().map_or(Ok(()), durable::sync_folder)?;
    durable::sync_folder(order.root)?;
    let files = write_files(&folder, &segment, order.sequence, content, step).inspect_err(|_| {
        give_back(&folder, &segment);
    })?;
    step("manifest")?;
    let coverage = content.coverage_range();
    let manifest = Manifest {
        format: FORMAT.to_owned(),
        version: VERSION,
        host: order.host.clone(),
        segment,
        sequence: order.sequence,
        sealed: order.now,
        flows: content.flow_range(),
        facts: content.validity(),
        coverage,
        recorded: content.recorded_range(),
        addresses: summary::addresses(content),
        blind: summary::blind(content, coverage),
        points: Some(summary::points(content)),
        replaces: Vec::new(),
        files,
        wal: order.wal,
        losses: content.losses,
        previous: order.previous,
    };
    let segment = manifest.segment.clone();
    let written = manifest::write(&folder, manifest, order.signer);
    Ok(written.inspect_err(|_| give_back(&folder, &segment))?)
}

fn write_files(
    folder: &Path,
    segment: &str,
    sequence: u64,
    content: &Content,
    step: &mut dyn FnMut(&str) -> Result<(), SegmentError>,
) -> Result<Vec<FileEntry>, SegmentError> {
    let kinds = Kind::ALL.into_iter().filter(|kind| *kind != Kind::People || !content.people.is_empty());
    let mut write = |kind: Kind| {
        step(kind.as_str())?;
        write_file(folder, segment, (kind, sequence), content)
    };
    kinds.map(&mut write).collect()
}

/// Removes the files of a segment that could not be written to its end: the likeliest reason is a full disk, and until the seal is tried
/// again the log needs their space. Where a manifest lists them (its folder could not be synced), they stay.
fn give_back(folder: &Path, segment: &str) {
    let manifest = folder.join(format!("{segment}{}", manifest::SUFFIX));
    if manifest.exists() {
        return;
    }
    let signature = sign::beside(&manifest, sign::SIGNATURE_SUFFIX);
    let files = Kind::ALL.map(|kind| folder.join(format!("{segment}-{kind}.parquet")));
    for path in files.iter().chain([&signature]) {
        // What cannot be removed now is removed when the ledger is opened.
        let _ = std::fs::remove_file(path);
    }
}

fn write_file(
    folder: &Path,
    segment: &str,
    (kind, sequence): (Kind, u64),
    content: &Content,
) -> Result<FileEntry, SegmentError> {
    let encode = |source| SegmentError::Encode { kind, source };
    let batch = tables::build(kind, content).map_err(|error| encode(error.into()))?;
    let batch = super::rows::numbered(&batch, sequence).map_err(|error| encode(error.into()))?;
    let rows = super::rows::digest(&batch).map_err(|error| encode(error.into()))?;
    let bytes = encode_parquet(kind, &batch).map_err(encode)?;
    let name = format!("{segment}-{kind}.parquet");
    durable::write_file(&folder.join(&name), &bytes)?;
    Ok(FileEntry {
        name,
        kind,
        rows: u64::try_from(batch.num_rows()).unwrap_or(u64::MAX),
        bytes: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
        sha256: Digest::of(&bytes),
        rows_sha256: Some(rows),
    })
}

pub(crate) fn encode_parquet(kind: Kind, batch: &RecordBatch) -> Result<Vec<u8>, ParquetError> {
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties(kind, batch)?))?;
    writer.write(batch)?;
    writer.close()?;
    Ok(bytes)
}

/// The first columns of the order in which rows of flows stand, told to whoever reads the file.
fn sorted_by(batch: &RecordBatch) -> Vec<SortingColumn> {
    let schema = batch.schema();
    let columns = super::rows::ORDER.iter().filter_map(|name| i32::try_from(schema.index_of(name).ok()?).ok());
    columns.map(|column_idx| SortingColumn { column_idx, descending: false, nulls_first: true }).collect()
}

fn properties(kind: Kind, batch: &RecordBatch) -> Result<WriterProperties, ParquetError> {
    let rows = u64::try_from(batch.num_rows().min(ROW_GROUP)).unwrap_or(1).max(1);
    let mut properties = WriterProperties::builder()
        // Of numbers a higher level makes more, not less; facts are mostly text.
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(if kind == Kind::Flows { 1 } else { 3 })?))
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_max_row_group_row_count(Some(ROW_GROUP))
        .set_data_page_row_count_limit(PAGE)
        // Without smaller write batches the writer looks at its page limits too seldom to keep them.
        .set_write_batch_size(1024)
        .set_created_by(concat!("vestigo ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_key_value_metadata(Some(vec![
            KeyValue::new("vestigo.format".to_owned(), FORMAT.to_owned()),
            KeyValue::new("vestigo.version".to_owned(), VERSION.to_string()),
            KeyValue::new("vestigo.kind".to_owned(), kind.as_str().to_owned()),
        ]));
    if kind == Kind::Flows {
        properties = properties.set_sorting_columns(Some(sorted_by(batch)));
        for column in DELTA.into_iter().chain(PLAIN) {
            properties = properties.set_column_dictionary_enabled(ColumnPath::from(column), false);
        }
        for column in DELTA {
            properties = properties.set_column_encoding(ColumnPath::from(column), Encoding::DELTA_BINARY_PACKED);
        }
    }
    for (_, column) in BLOOM.iter().filter(|(of, _)| *of == kind) {
        let path = || ColumnPath::from(*column);
        properties = properties
            .set_column_bloom_filter_enabled(path(), true)
            .set_column_bloom_filter_fpp(path(), 0.001)
            .set_column_bloom_filter_max_ndv(path(), rows);
    }
    Ok(properties.build())
}
