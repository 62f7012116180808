//! The SQL engine over the ledgers: DataFusion, read-only, bounded in memory, and blind to every file that is no segment's.

mod functions;
mod hints;
mod objects;
pub mod rows;
mod table;
mod views;

use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use datafusion::{
    error::DataFusionError,
    execution::{disk_manager::DiskManagerBuilder, memory_pool::FairSpillPool, runtime_env::RuntimeEnvBuilder},
    prelude::{DataFrame, SQLOptions, SessionConfig, SessionContext},
    sql::{
        parser::{DFParser, Statement},
        sqlparser::ast::Statement as SqlStatement,
    },
};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use vestigo_ledger::Ledger;

use crate::{exit::Usage, settings::SqlSection};

/// The engine with the views of some ledgers.
pub struct Engine {
    runtime: Runtime,
    context: SessionContext,
    settings: SqlSection,
    /// Removed, with what was spilled, when the engine goes.
    _spill: TempDir,
}

impl Engine {
    /// Sets the engine up; no segment is read yet.
    ///
    /// # Errors
    /// There is no room for temporary files, or a view cannot be made.
    pub fn new(ledger: Ledger, settings: SqlSection) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("sql").build()?;
        let spill = tempfile::Builder::new()
            .prefix("vestigo-sql-")
            .tempdir()
            .context("Cannot make a folder for temporary files; set TMPDIR to one that can be written")?;
        let memory = usize::from(settings.memory_mib) << 20;
        let disk = DiskManagerBuilder::default().with_max_temp_directory_size(u64::from(settings.spill_gib) << 30);
        let environment = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(FairSpillPool::new(memory)))
            .with_disk_manager_builder(disk)
            .with_temp_file_path(spill.path())
            .build_arc()?;
        let mut config = SessionConfig::new().with_information_schema(true);
        config.options_mut().execution.parquet.pushdown_filters = true;
        config.options_mut().execution.parquet.reorder_filters = true;
        let context = SessionContext::new_with_config_rt(config, environment);
        // Files of this machine cannot be named at all.
        let files = datafusion::execution::object_store::ObjectStoreUrl::local_filesystem();
        let _ = context.runtime_env().deregister_object_store(files.as_ref());
        functions::register(&context);
        let ledger = Arc::new(ledger);
        runtime.block_on(views::register(&context, &ledger))?;
        Ok(Self { runtime, context, settings, _spill: spill })
    }

    /// Plans one SELECT (or EXPLAIN, DESCRIBE, SHOW).
    ///
    /// # Errors
    /// [`Usage`]: it is something else, or makes no sense over the views.
    pub fn select(&self, query: &str) -> Result<DataFrame> {
        only_reads(query)?;
        let options = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        let planned = self.runtime.block_on(self.context.sql_with_options(query, options));
        planned.map_err(|error| self.explain(error))
    }

    /// A view, to be filtered.
    ///
    /// # Errors
    /// There is no such view.
    pub fn view(&self, name: &str) -> Result<DataFrame> {
        self.runtime.block_on(self.context.table(name)).map_err(|error| self.explain(error))
    }

    /// Runs a plan to its end and hands on what comes out of it.
    ///
    /// # Errors
    /// A segment cannot be read, the memory does not do, or `take` fails.
    pub fn run(
        &self,
        frame: DataFrame,
        mut take: impl FnMut(&datafusion::arrow::array::RecordBatch) -> Result<()>,
    ) -> Result<()> {
        use futures::StreamExt as _;
        self.runtime.block_on(async {
            let mut batches = frame.execute_stream().await.map_err(|error| self.explain(error))?;
            while let Some(batch) = batches.next().await {
                take(&batch.map_err(|error| self.explain(error))?)?;
            }
            Ok(())
        })
    }

    /// One sentence that says what to do.
    pub fn explain(&self, error: DataFusionError) -> anyhow::Error {
        let text = error.strip_backtrace();
        let text = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
        match error.find_root() {
            DataFusionError::ResourcesExhausted(_) => anyhow!(
                "The query needs more than the {} MiB that it may have ({text}); ask for less, or raise `memory_mib` in [sql] of \
                 vestigo.toml",
                self.settings.memory_mib
            ),
            DataFusionError::SQL(..)
            | DataFusionError::Plan(_)
            | DataFusionError::SchemaError(..)
            | DataFusionError::Diagnostic(..)
            | DataFusionError::NotImplemented(_)
            // A value that is none of its type, a division by zero: what was asked, and no fault of a segment.
            | DataFusionError::ArrowError(..)
                if of_question(error.find_root()) =>
            {
                Usage(format!(
                "{text}; `vestigo sql 'SHOW TABLES'` and `vestigo sql 'DESCRIBE flows'` show what can be asked"
                ))
                .into()
            }
            _ => anyhow!("The query failed: {text}"),
        }
    }
}

/// Whether the question is to blame. Arrow also says what is wrong with a file.
fn of_question(error: &DataFusionError) -> bool {
    use datafusion::arrow::error::ArrowError::{
        ArithmeticOverflow, CastError, DivideByZero, InvalidArgumentError, ParseError,
    };
    let DataFusionError::ArrowError(error, _) = error else { return true };
    matches!(**error, ArithmeticOverflow(_) | CastError(_) | DivideByZero | InvalidArgumentError(_) | ParseError(_))
}

/// Whether the text only reads, by its form. The engine refuses the rest as well; here it is refused in words.
fn only_reads(query: &str) -> Result<(), Usage> {
    let statements = DFParser::parse_sql(query).map_err(|error| Usage(format!("This is no SQL: {error}")))?;
    let reads = |statement: &Statement| match statement {
        Statement::Statement(statement) => matches!(
            **statement,
            SqlStatement::Query(_)
                | SqlStatement::ExplainTable { .. }
                | SqlStatement::ShowTables { .. }
                | SqlStatement::ShowColumns { .. }
        ),
        Statement::Explain(_) => true,
        _ => false,
    };
    match statements.len() {
        1 if statements.iter().all(reads) => Ok(()),
        1 => Err(Usage(
            "Only SELECT is answered: a ledger is evidence, and nothing is written, created or read elsewhere through it".to_owned(),
        )),
        many => Err(Usage(format!("Write one SELECT; these are {many} statements"))),
    }
}

#[cfg(test)]
mod tests {
    use super::only_reads;

    #[test]
    fn only_what_reads_passes() {
        for query in
            ["SELECT 1", "WITH a AS (SELECT 1) SELECT * FROM a", "EXPLAIN SELECT 1", "SHOW TABLES", "DESCRIBE flows"]
        {
            assert!(only_reads(query).is_ok(), "{query}");
        }
        for query in [
            "CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '/etc/passwd'",
            "COPY (SELECT 1) TO '/tmp/x.csv'",
            "CREATE TABLE x AS SELECT 1",
            "INSERT INTO flows SELECT * FROM flows",
            "DROP VIEW flows",
            "SET a = 1",
            "SELECT 1; SELECT 2",
            "",
        ] {
            assert!(only_reads(query).is_err(), "{query}");
        }
    }
}
