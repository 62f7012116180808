//! What a condition says of every row that fits it, so that files without such rows need not be opened.

use std::collections::BTreeSet;

use datafusion::{
    arrow::datatypes::{DataType, TimeUnit},
    common::ScalarValue,
    logical_expr::{BinaryExpr, Expr, Operator, utils::split_conjunction},
};
use vestigo_ledger::TableHints;
use vestigo_model::{HostId, TimeRange, Timestamp};

/// Columns of which files may know that they lack a value.
const COLUMNS: [&str; 7] = ["orig_ip", "resp_ip", "nat_ip", "payload", "domain", "user", "user_subject"];

/// The columns of flows that hold addresses.
const ADDRESSES: [&str; 3] = ["orig_ip", "resp_ip", "nat_ip"];

/// The hints of conditions that all hold.
pub(super) fn of(filters: &[Expr]) -> TableHints {
    let parts: Vec<&Expr> = filters.iter().flat_map(split_conjunction).collect();
    let mut hints = TableHints::default();
    for column in COLUMNS {
        if let Some(values) = parts.iter().find_map(|part| values(part, &[column])) {
            hints.equal.insert(column.to_owned(), values);
        }
    }
    hints.addresses = parts.iter().find_map(|part| values(part, &ADDRESSES)).unwrap_or_default();
    if let Some(hosts) = parts.iter().find_map(|part| values(part, &["host"])) {
        hints.hosts = hosts.into_iter().filter_map(|host| HostId::new(host).ok()).collect();
    }
    hints
}

/// The values of which every row that fits has one in one of the columns; `None`: it may have any.
fn values(expression: &Expr, columns: &[&str]) -> Option<BTreeSet<String>> {
    match expression {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => {
            let (name, value) = if is(left, columns) { (left, right) } else { (right, left) };
            if is(name, columns) { text(value).map(|text| BTreeSet::from([text])) } else { None }
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
            values(left, columns).or_else(|| values(right, columns))
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            let mut both = values(left, columns)?;
            both.extend(values(right, columns)?);
            Some(both)
        }
        Expr::InList(list) if !list.negated && is(&list.expr, columns) => list.list.iter().map(text).collect(),
        _ => None,
    }
}

/// Whether the expression is one of the columns, or one of them as another type that keeps its values. Any other cast may make
/// different values equal (`CAST(first AS DATE)`), and a hint from it would lose rows.
fn is(expression: &Expr, columns: &[&str]) -> bool {
    match expression {
        Expr::Column(found) => columns.contains(&found.name.as_str()),
        Expr::Cast(cast) => keeps(cast.field.data_type()) && is(&cast.expr, columns),
        _ => false,
    }
}

const fn keeps(to: &DataType) -> bool {
    use DataType::{Dictionary, LargeUtf8, Timestamp, Utf8, Utf8View};
    matches!(to, Utf8 | LargeUtf8 | Utf8View | Dictionary(..) | Timestamp(TimeUnit::Nanosecond, _))
}

fn text(expression: &Expr) -> Option<String> {
    match expression {
        Expr::Literal(value, _) => match value {
            ScalarValue::Dictionary(_, value) => value.try_as_str().flatten().map(str::to_owned),
            value => value.try_as_str().flatten().map(str::to_owned),
        },
        Expr::Cast(cast) => text(&cast.expr),
        _ => None,
    }
}

/// The stretch outside of which no row can fit, where rows reach from column `first` to column `last`.
pub(super) fn range(filters: &[Expr], first: &str, last: &str) -> Option<TimeRange> {
    let (mut from, mut to) = (i64::MIN, i64::MAX);
    for part in filters.iter().flat_map(split_conjunction) {
        let Expr::BinaryExpr(BinaryExpr { left, op, right }) = part else { continue };
        let (column, op, value) = match (time(right), time(left)) {
            (Some(value), _) => (left, *op, value),
            (None, Some(value)) => (right, op.swap().unwrap_or(Operator::NotEq), value),
            (None, None) => continue,
        };
        // Every row begins before it ends: an upper bound of either is one of its beginning, and the other way round.
        let of_row = is(column, &[first, last]);
        match op {
            Operator::Lt | Operator::LtEq if of_row => to = to.min(value),
            Operator::Gt | Operator::GtEq if of_row => from = from.max(value),
            Operator::Eq if of_row => (from, to) = (from.max(value), to.min(value)),
            _ => {}
        }
    }
    if (from, to) == (i64::MIN, i64::MAX) {
        return None;
    }
    // Conditions that contradict each other are the engine's to find out.
    TimeRange::new(Timestamp::from_nanos(from), Timestamp::from_nanos(to))
}

fn time(expression: &Expr) -> Option<i64> {
    match expression {
        Expr::Literal(ScalarValue::TimestampNanosecond(nanos, _), _) => *nanos,
        _ => None,
    }
}
