//! The documented views (docs/investigating.md).

use std::sync::Arc;

use anyhow::Result;
use datafusion::prelude::SessionContext;
use vestigo_ledger::{Kind, Ledger};

use super::table::{LedgerTable, Stores};

/// Of a VM the last record holds.
const INSTANCES: &str = r#"
SELECT * EXCEPT (nth) FROM (
  SELECT *, row_number() OVER (PARTITION BY host, domain, start ORDER BY recorded DESC, "end" DESC NULLS LAST) AS nth
  FROM instance_records)
WHERE nth = 1"#;

/// Of a payload the first claim holds, with the first end it was given.
const PAYLOADS: &str = r#"
SELECT * EXCEPT (said, held, nth) FROM (
  SELECT *,
    first_value(said) OVER (PARTITION BY host, domain, payload ORDER BY recorded, received) AS held,
    row_number() OVER (PARTITION BY host, domain, payload, said ORDER BY end_received IS NULL, recorded) AS nth
  FROM (SELECT *, what_was_said(record) AS said FROM payload_records))
WHERE said = held AND nth = 1"#;

pub(super) async fn register(context: &SessionContext, ledger: &Arc<Ledger>) -> Result<()> {
    let stores = Arc::new(Stores::default());
    let tables = [
        ("flows", Kind::Flows),
        ("instance_records", Kind::Instances),
        ("payload_records", Kind::Payloads),
        ("coverage", Kind::Coverage),
        ("events", Kind::Events),
        ("people", Kind::People),
    ];
    for (name, kind) in tables {
        context.register_table(name, Arc::new(LedgerTable::new(ledger, &stores, kind)?))?;
    }
    for (name, query) in [("instances", INSTANCES), ("payloads", PAYLOADS)] {
        let view = context.sql(query).await?.into_view();
        context.register_table(name, view)?;
    }
    Ok(())
}
