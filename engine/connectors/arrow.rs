//! Rows to Arrow and back.
//!
//! SQL and Parquet speak Arrow; the engine speaks rows. To Arrow, a cell that is not of its
//! column's type is a bug of the caller and an error. From Arrow it is data: the cast must be exact,
//! and a cell that does not survive it is reported with a cause, row by row.

use std::sync::Arc;

use coea_operators::{
    row::{Row, Value},
    schema::{Column, Schema, Type},
};
use datafusion::arrow::{
    array::{
        Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Float64Array, Int64Array, ListArray,
        RecordBatch, RecordBatchOptions, StringArray, StructArray, TimestampSecondArray, UInt64Array,
    },
    buffer::{NullBuffer, OffsetBuffer},
    compute::{CastOptions, cast_with_options},
    datatypes::{
        DataType, Field, Float64Type, Int64Type, TimeUnit as ArrowUnit, TimestampSecondType, UInt64Type,
    },
    error::ArrowError,
    util::display::{ArrayFormatter, FormatOptions},
};

use super::{
    TimeUnit,
    cell::{Cell, exact_whole, misfit},
};

/// The rows as one Arrow batch: a column per cell, typed as [`Type::to_arrow`] says, all nullable.
///
/// # Errors
/// If a cell is not of its column's type.
pub fn rows_to_batch<'a>(
    columns: &[Column],
    rows: impl IntoIterator<Item = &'a Row>,
) -> Result<RecordBatch, ArrowError> {
    let rows: Vec<&Row> = rows.into_iter().collect();
    let schema = Schema::new([], columns.iter().cloned()).to_arrow();
    let arrays = columns.iter().enumerate().map(|(at, column)| {
        let cells: Vec<&Value> = rows.iter().map(|row| row.get(at).unwrap_or(&Value::Null)).collect();
        array(&column.ty, &cells).map_err(|found| {
            ArrowError::CastError(format!("column {}: {found} is no {}", column.name, column.ty))
        })
    });
    let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
    RecordBatch::try_new_with_options(Arc::new(schema), arrays.collect::<Result<_, _>>()?, &options)
}

/// One column; the error is the cell that is of another type.
fn array(ty: &Type, cells: &[&Value]) -> Result<ArrayRef, Value> {
    fn each<'a, T>(
        cells: &[&'a Value],
        get: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Vec<Option<T>>, Value> {
        let one = |cell: &&'a Value| match cell {
            Value::Null => Ok(None),
            cell => get(cell).map(Some).ok_or_else(|| (*cell).clone()),
        };
        cells.iter().map(one).collect()
    }
    let whole = |cell: &Value| match cell {
        Value::I64(v) => Some(*v),
        _ => None,
    };
    Ok(match ty {
        Type::Bool => Arc::new(BooleanArray::from(each(cells, |cell| match cell {
            Value::Bool(v) => Some(*v),
            _ => None,
        })?)),
        Type::U64 => Arc::new(UInt64Array::from(each(cells, |cell| match cell {
            Value::U64(v) => Some(*v),
            _ => None,
        })?)),
        Type::I64 => Arc::new(Int64Array::from(each(cells, whole)?)),
        Type::Timestamp => Arc::new(TimestampSecondArray::from(each(cells, whole)?)),
        Type::F64 => Arc::new(Float64Array::from(each(cells, |cell| match cell {
            Value::F64(v) => Some(v.get()),
            _ => None,
        })?)),
        Type::Text => Arc::new(StringArray::from(each(cells, Value::as_text)?)),
        Type::Bytes => Arc::new(BinaryArray::from(each(cells, |cell| match cell {
            Value::Bytes(v) => Some(v.as_ref()),
            _ => None,
        })?)),
        Type::List(item) => {
            let lists = each(cells, Value::as_list)?;
            let inner: Vec<&Value> = lists.iter().flatten().flat_map(|list| list.iter()).collect();
            let lengths = OffsetBuffer::from_lengths(lists.iter().map(|list| list.map_or(0, <[_]>::len)));
            let nulls = NullBuffer::from_iter(lists.iter().map(Option::is_some));
            let field = Arc::new(Field::new("item", item.to_arrow(), true));
            Arc::new(ListArray::new(field, lengths, array(item, &inner)?, Some(nulls)))
        }
        Type::Tuple(types) => tuples(ty, types, &each(cells, Value::as_list)?)?,
    })
}

fn tuples(ty: &Type, types: &[Type], lists: &[Option<&[Value]>]) -> Result<ArrayRef, Value> {
    let DataType::Struct(fields) = ty.to_arrow() else {
        unreachable!("a tuple is a struct in Arrow");
    };
    let part = |(at, ty): (usize, &Type)| {
        let cells: Vec<&Value> =
            lists.iter().map(|list| list.and_then(|list| list.get(at)).unwrap_or(&Value::Null)).collect();
        array(ty, &cells)
    };
    let parts = types.iter().enumerate().map(part).collect::<Result<_, _>>()?;
    let nulls = NullBuffer::from_iter(lists.iter().map(Option::is_some));
    Ok(Arc::new(StructArray::new(fields, parts, Some(nulls))))
}

/// An Arrow column as cells of a declared type.
pub(super) struct CellColumn<'a> {
    cell: &'a Cell,
    found: ArrayRef,
    cast: ArrayRef,
    /// Factor from the found to the declared unit of a time.
    time: Option<Scale>,
}

/// How a time is brought to the declared unit.
#[derive(Clone, Copy)]
enum Scale {
    Times(i64),
    Over(i64),
}

impl<'a> CellColumn<'a> {
    /// Prepares a column.
    ///
    /// # Errors
    /// If no value of the found type can be one of the declared type.
    pub fn new(cell: &'a Cell, unit: TimeUnit, found: &ArrayRef) -> Result<Self, String> {
        let from = found.data_type();
        let unfit = || format!("column `{}` is {from}, and {} was declared", cell.name, cell.ty);
        let time = match from {
            _ if !(cell.time || cell.ty == Type::Timestamp) => None,
            DataType::Timestamp(found, _) => {
                let unit = if cell.time { unit } else { TimeUnit::Seconds };
                Some(scale(*found, unit.per_second()))
            }
            _ => None,
        };
        // Times are cast as the bare numbers they are; dates and other types as Arrow knows.
        let target = match &cell.ty {
            Type::Timestamp if !matches!(from, DataType::Date32 | DataType::Date64) => DataType::Int64,
            ty => ty.to_arrow(),
        };
        if !castable(from, &target) {
            return Err(unfit());
        }
        let options = CastOptions { safe: true, ..CastOptions::default() };
        let cast = cast_with_options(found, &target, &options).map_err(|_| unfit())?;
        Ok(CellColumn { cell, found: found.clone(), cast, time })
    }

    /// The cell of a row.
    ///
    /// # Errors
    /// Why it is none.
    pub fn get(&self, row: usize) -> Result<Value, String> {
        if self.found.is_null(row) {
            return self.cell.check(Value::Null);
        }
        let misfit = || self.cell.named(misfit(&shown(&self.found, row), &self.cell.ty));
        if self.cast.is_null(row) || !self.exact(row) {
            return Err(misfit());
        }
        let value = value(&self.cast, row).ok_or_else(misfit)?;
        self.cell.check(match (self.time, value) {
            (Some(scale), Value::I64(time)) => Value::I64(scaled(time, scale).ok_or_else(|| {
                self.cell.named(format!("{} does not fit the declared time unit", shown(&self.found, row)))
            })?),
            (_, value) => value,
        })
    }

    /// False if the cast cut a fraction off.
    fn exact(&self, row: usize) -> bool {
        let whole = matches!(self.cast.data_type(), DataType::Int64 | DataType::UInt64);
        match self.found.data_type() {
            DataType::Float64 if whole => {
                exact_whole(self.found.as_primitive::<Float64Type>().value(row)).is_some()
            }
            DataType::Float16 | DataType::Float32 if whole => {
                shown(&self.found, row).parse().ok().and_then(exact_whole).is_some()
            }
            _ => true,
        }
    }
}

/// Which types may stand for which: numbers for numbers, text for what it spells, and no guesses.
fn castable(from: &DataType, to: &DataType) -> bool {
    if let DataType::Dictionary(_, values) = from {
        return castable(values, to);
    }
    let text = matches!(from, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    match (from, to) {
        (DataType::Null, _) => true,
        (
            DataType::List(a)
            | DataType::LargeList(a)
            | DataType::FixedSizeList(a, _)
            | DataType::ListView(a),
            DataType::List(b),
        ) => castable(a.data_type(), b.data_type()),
        (_, DataType::Utf8) => text || from.is_integer(),
        (_, DataType::Boolean) => text || from == &DataType::Boolean,
        (DataType::Timestamp(_, _), DataType::Int64) => true,
        (DataType::Date32 | DataType::Date64, DataType::Timestamp(_, _)) => true,
        (_, DataType::Int64 | DataType::UInt64) => text || from.is_integer() || from.is_floating(),
        (_, DataType::Float64) => text || from.is_numeric(),
        _ => false,
    }
}

fn scale(found: ArrowUnit, declared_per_second: i64) -> Scale {
    let found_per_second = match found {
        ArrowUnit::Second => 1,
        ArrowUnit::Millisecond => 1_000,
        ArrowUnit::Microsecond => 1_000_000,
        ArrowUnit::Nanosecond => 1_000_000_000,
    };
    if declared_per_second >= found_per_second {
        Scale::Times(declared_per_second / found_per_second)
    } else {
        Scale::Over(found_per_second / declared_per_second)
    }
}

/// `None` if the number does not fit, or a fraction would be lost.
fn scaled(time: i64, scale: Scale) -> Option<i64> {
    match scale {
        Scale::Times(by) => time.checked_mul(by),
        Scale::Over(by) => (time % by == 0).then_some(time / by),
    }
}

/// The cell of an array of one of the types [`Type::to_arrow`] gives.
fn value(array: &dyn Array, row: usize) -> Option<Value> {
    if array.is_null(row) {
        return Some(Value::Null);
    }
    Some(match array.data_type() {
        DataType::Boolean => Value::Bool(array.as_boolean().value(row)),
        DataType::UInt64 => Value::U64(array.as_primitive::<UInt64Type>().value(row)),
        DataType::Int64 => Value::I64(array.as_primitive::<Int64Type>().value(row)),
        DataType::Timestamp(ArrowUnit::Second, _) => {
            Value::I64(array.as_primitive::<TimestampSecondType>().value(row))
        }
        DataType::Float64 => Value::float(array.as_primitive::<Float64Type>().value(row)),
        DataType::Utf8 => Value::text(array.as_string::<i32>().value(row)),
        DataType::Binary => Value::Bytes(array.as_binary::<i32>().value(row).into()),
        DataType::List(_) => {
            let items = array.as_list::<i32>().value(row);
            Value::List((0..items.len()).map(|at| value(&items, at)).collect::<Option<_>>()?)
        }
        _ => return None,
    })
}

/// A cell as Arrow prints it.
pub(super) fn shown(array: &dyn Array, row: usize) -> String {
    let options = FormatOptions::default().with_null("null");
    ArrayFormatter::try_new(array, &options)
        .map_or_else(|error| error.to_string(), |f| f.value(row).to_string())
}
