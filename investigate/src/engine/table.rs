//! A table of the ledgers: the files of the segments that can hold what is asked for, and the rows of the live logs.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use datafusion::{
    arrow::datatypes::SchemaRef,
    catalog::{
        Session, TableProvider,
        memory::{DataSourceExec, MemorySourceConfig},
    },
    common::{DFSchema, Result, exec_datafusion_err},
    datasource::{
        TableType,
        listing::PartitionedFile,
        physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource},
    },
    execution::object_store::ObjectStoreUrl,
    logical_expr::{Expr, TableProviderFilterPushDown, utils::conjunction},
    physical_plan::{ExecutionPlan, union::UnionExec},
};
use vestigo_ledger::{Kind, Ledger, SegmentFile, Store, rows};
use vestigo_model::TimeRange;

use super::{hints, objects::Objects};

/// The stores that plans have named, by their order.
#[derive(Debug, Default)]
pub(super) struct Stores(Mutex<Vec<(String, ObjectStoreUrl, Arc<Objects>)>>);

impl Stores {
    fn of(&self, store: &Arc<dyn Store>, state: &dyn Session) -> Result<(ObjectStoreUrl, Arc<Objects>)> {
        let mut stores = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, url, objects)) = stores.iter().find(|(name, ..)| name == store.name()) {
            return Ok((url.clone(), Arc::clone(objects)));
        }
        let url = ObjectStoreUrl::parse(format!("ledger://{}", stores.len()))?;
        let objects = Arc::new(Objects::new(Arc::clone(store)));
        state.runtime_env().register_object_store(url.as_ref(), Arc::<Objects>::clone(&objects));
        stores.push((store.name().to_owned(), url.clone(), Arc::clone(&objects)));
        Ok((url, objects))
    }
}

/// A table.
pub(super) struct LedgerTable {
    ledger: Arc<Ledger>,
    stores: Arc<Stores>,
    kind: Kind,
    schema: SchemaRef,
}

impl fmt::Debug for LedgerTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LedgerTable({})", self.kind)
    }
}

impl LedgerTable {
    pub(super) fn new(ledger: &Arc<Ledger>, stores: &Arc<Stores>, kind: Kind) -> anyhow::Result<Self> {
        Ok(Self { ledger: Arc::clone(ledger), stores: Arc::clone(stores), kind, schema: rows::schema(kind)? })
    }

    /// What is asked of the time, where rows of this kind are found by their time.
    fn range(&self, filters: &[Expr]) -> Option<TimeRange> {
        match self.kind {
            Kind::Flows => hints::range(filters, "first", "last"),
            Kind::Coverage => hints::range(filters, "start", "end"),
            Kind::Events => hints::range(filters, "time", "time"),
            // The last record of a VM, and the first of a payload, may lie in any segment.
            Kind::Instances | Kind::Payloads | Kind::People => None,
        }
    }

    fn files(
        &self,
        state: &dyn Session,
        files: Vec<SegmentFile>,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Vec<Arc<dyn ExecutionPlan>>> {
        let mut by_store: BTreeMap<String, Vec<SegmentFile>> = BTreeMap::new();
        for file in files {
            by_store.entry(file.store.name().to_owned()).or_default().push(file);
        }
        let mut plans: Vec<Arc<dyn ExecutionPlan>> = Vec::new();
        for files in by_store.into_values() {
            let Some(first) = files.first() else { continue };
            let (url, objects) = self.stores.of(&first.store, state)?;
            objects.note(files.iter().map(|file| (file.path.as_str(), file.bytes)));
            let files = files.into_iter().map(|file| PartitionedFile::new(file.path, file.bytes)).collect();
            let groups = FileGroup::new(files).split_files(state.config().target_partitions().max(1));
            let mut source = ParquetSource::new(Arc::clone(&self.schema))
                .with_pushdown_filters(true)
                .with_reorder_filters(true)
                .with_metadata_size_hint(64 << 10);
            if let Some(condition) = conjunction(filters.to_vec()) {
                let schema = DFSchema::try_from(Arc::clone(&self.schema))?;
                source = source.with_predicate(state.create_physical_expr(condition, &schema)?);
            }
            let config = FileScanConfigBuilder::new(url, Arc::new(source))
                .with_file_groups(groups)
                .with_projection_indices(projection.cloned())?
                .with_limit(limit)
                .build();
            plans.push(DataSourceExec::from_data_source(config));
        }
        Ok(plans)
    }
}

#[async_trait]
impl TableProvider for LedgerTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let (ledger, kind, range, hints) =
            (Arc::clone(&self.ledger), self.kind, self.range(filters), hints::of(filters));
        let read = tokio::task::spawn_blocking(move || {
            let files = ledger.tables(kind, range, &hints)?;
            Ok((files, rows::of_live(kind, ledger.live_rows(range)?)?))
        });
        let read: std::result::Result<_, vestigo_ledger::LedgerError> =
            read.await.map_err(|error| exec_datafusion_err!("{error}"))?;
        let (files, live) = read.map_err(|error| datafusion::error::DataFusionError::External(Box::new(error)))?;
        let mut plans = self.files(state, files, projection, filters, limit)?;
        plans.push(MemorySourceConfig::try_new_exec(&[vec![live]], Arc::clone(&self.schema), projection.cloned())?);
        match plans.len() {
            1 => plans.pop().ok_or_else(|| exec_datafusion_err!("nothing to read")),
            _ => UnionExec::try_new(plans),
        }
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }
}
