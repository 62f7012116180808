//! `vestigo sql`.

use anyhow::Result;
use datafusion::logical_expr::LogicalPlan;

use super::{Body, Desk, Output};
use crate::{
    arguments::{Format, Sql},
    engine::{Engine, rows::Printer},
    exit::Exit,
};

/// Asks and renders.
pub fn run(arguments: &Sql, desk: &Desk) -> Result<Output> {
    let format = if arguments.json { Format::Jsonl } else { arguments.format };
    let engine = Engine::new(desk.ledger()?, desk.settings.sql)?;
    let frame = engine.select(&arguments.query)?;
    let plan = matches!(frame.logical_plan(), LogicalPlan::Explain(_) | LogicalPlan::Analyze(_));
    let mut printer = Printer::new(format, frame.schema().inner(), plan)?;
    engine.run(frame, |batch| printer.take(batch))?;
    let rows = printer.rows;
    let exit = if rows > 0 { Exit::Found } else { Exit::Nothing };
    Ok(Output { body: Body::File(printer.finish()?), exit, found: Some(rows) })
}
