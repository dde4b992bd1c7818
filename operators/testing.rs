//! What unit tests of operators share.

use crate::{
    row::{Row, Value},
    shape::{Counts, Event, FoldKernel},
};

/// Folds a history of (time, item, count), oldest first; item n has its decimal digits as categories.
pub fn fold(kernel: &dyn FoldKernel, history: &[(i64, u64, u64)]) -> Vec<Row> {
    let rows: Vec<(Row, Row, u64)> = history
        .iter()
        .map(|(time, item, count)| {
            let digits = item.to_string();
            let dim = Row::from([Value::list(digits.chars().map(|c| Value::text(c.to_string())))]);
            (Row::from([Value::I64(*time), Value::U64(*item)]), dim, *count)
        })
        .collect();
    let event = |(row, dim, count): &(Row, Row, u64), visit: &mut dyn FnMut(&Event<'_>) -> bool| {
        visit(&Event { row, count: *count, dim: Some(dim) })
    };
    let mut counts = Counts::new();
    for row in &rows {
        event(row, &mut |e| {
            let mut values = Vec::new();
            kernel.counted(e, &mut values);
            values.into_iter().for_each(|v| *counts.entry(v).or_default() += e.count as i64);
            true
        });
    }
    let mut out = Vec::new();
    let mut walk = |visit: &mut dyn FnMut(&Event<'_>) -> bool| {
        let _ = rows.iter().rev().all(|row| event(row, visit));
    };
    kernel.emit(&Row::from([Value::U64(1)]), &mut walk, &counts, &mut out);
    out
}
