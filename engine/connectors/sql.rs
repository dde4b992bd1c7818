//! SQL through DataFusion: the `where` of a source, and queries over tables of the engine.
//!
//! A `where` decides one row at a time, today and on every replay: aggregates, subqueries and
//! functions of the clock or of chance are refused when the pipeline is checked, because a store
//! filtered by them could never be recomputed. Column names are taken as they are declared, upper
//! case included.

use std::{
    io::{self, Write},
    sync::Arc,
};

use coea_operators::{
    row::Row,
    schema::{Column, Schema},
};
use datafusion::{
    arrow::{
        array::{Array, AsArray, BooleanArray, RecordBatch},
        datatypes::{DataType, TimeUnit},
        error::ArrowError,
        json::{WriterBuilder, writer::LineDelimited},
    },
    common::{
        DFSchema, DataFusionError,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    execution::FunctionRegistry,
    logical_expr::{
        Expr, ExprSchemable, Volatility, cast,
        planner::{ExprPlanner, PlannerResult, RawBinaryExpr},
    },
    physical_expr::PhysicalExpr,
    prelude::{SQLOptions, SessionConfig, SessionContext},
    sql::sqlparser::ast::BinaryOperator,
};
use datafusion_functions_nested::planner::{FieldAccessPlanner, NestedFunctionPlanner};

pub use super::arrow::rows_to_batch;
use crate::nearest::did_you_mean;

/// Why SQL cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    /// It does not parse or does not fit the columns.
    #[error("{0}")]
    Plan(String),
    /// A condition names a column that is not there.
    #[error("there is no column `{name}`{hint}")]
    Column {
        /// The name.
        name: String,
        /// `; did you mean …?`, or the columns there are.
        hint: String,
    },
    /// A condition does more than decide one row.
    #[error("{0} cannot be used here: a condition decides each row by itself, the same on every run")]
    NotPerRow(String),
    /// A condition is neither true nor false.
    #[error("the condition is of type {0}, not true or false")]
    NotBoolean(String),
    /// It failed on the data.
    #[error("{0}")]
    Run(String),
}

impl From<ArrowError> for SqlError {
    fn from(error: ArrowError) -> Self {
        SqlError::Run(error.to_string())
    }
}

/// What a condition says of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// True.
    Keep,
    /// False or null.
    Drop,
    /// It cannot be evaluated on this row, such as a cast that fails.
    Failed(String),
}

/// A condition on the rows of a table, parsed and typed.
#[derive(Debug)]
pub struct Filter {
    expr: Arc<dyn PhysicalExpr>,
    /// The columns it reads, with their positions in the row.
    columns: Vec<(usize, Column)>,
}

impl Filter {
    /// Parses a SQL expression over the columns of a table.
    ///
    /// # Errors
    /// [`SqlError`], if it does not parse, names an unknown column, is not boolean, or could not be
    /// decided from one row alone.
    pub fn parse(sql: &str, columns: &[Column]) -> Result<Filter, SqlError> {
        let plan = |error: DataFusionError| explained(&error, columns);
        let session = session();
        let schema = df_schema(columns).map_err(plan)?;
        let expr = session.parse_sql_expr(sql, &schema).map_err(plan)?;
        per_row(&expr)?;
        let ty = expr.get_type(&schema).map_err(plan)?;
        if ty != DataType::Boolean {
            return Err(SqlError::NotBoolean(ty.to_string()));
        }
        let read = |column: &Column| expr.column_refs().iter().any(|used| used.name == column.name);
        let used: Vec<(usize, Column)> =
            columns.iter().cloned().enumerate().filter(|(_, column)| read(column)).collect();
        let narrow: Vec<Column> = used.iter().map(|(_, column)| column.clone()).collect();
        let expr = session.create_physical_expr(expr, &df_schema(&narrow).map_err(plan)?).map_err(plan)?;
        Ok(Filter { expr, columns: used })
    }

    /// Judges rows of the table. A batch on which the condition fails is judged row by row, so that
    /// one bad row costs no other.
    ///
    /// # Errors
    /// If a row is not one of the table.
    pub fn judge<'a>(&self, rows: impl IntoIterator<Item = &'a Row>) -> Result<Vec<Verdict>, SqlError> {
        let rows: Vec<Row> = rows
            .into_iter()
            .map(|row| Row::new(self.columns.iter().map(|(at, _)| row[*at].clone())))
            .collect();
        let columns: Vec<Column> = self.columns.iter().map(|(_, column)| column.clone()).collect();
        let batch = rows_to_batch(&columns, &rows)?;
        let verdict = |kept: &BooleanArray, row: usize| match kept.is_valid(row) && kept.value(row) {
            true => Verdict::Keep,
            false => Verdict::Drop,
        };
        if let Ok(kept) = self.evaluate(&batch) {
            return Ok((0..batch.num_rows()).map(|row| verdict(&kept, row)).collect());
        }
        let alone = |row| match self.evaluate(&batch.slice(row, 1)) {
            Ok(kept) => verdict(&kept, 0),
            Err(error) => Verdict::Failed(first_line(&error)),
        };
        Ok((0..batch.num_rows()).map(alone).collect())
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<BooleanArray, DataFusionError> {
        Ok(self.expr.evaluate(batch)?.into_array(batch.num_rows())?.as_boolean().clone())
    }
}

fn df_schema(columns: &[Column]) -> Result<DFSchema, DataFusionError> {
    DFSchema::try_from(Schema::new([], columns.iter().cloned()).to_arrow())
}

/// A session that runs on one thread and takes names as they are written.
fn session() -> SessionContext {
    let mut config = SessionConfig::new().with_target_partitions(1);
    config.options_mut().sql_parser.enable_ident_normalization = false;
    let mut session = SessionContext::new_with_config(config);
    // Lists are a column type of the engine, so their functions are there: `array_has(genres, 'War')`.
    // Registration only fails for a registry that is read-only, which a fresh session is not.
    let _ = datafusion_functions_nested::register_all(&mut session);
    let planners: [Arc<dyn ExprPlanner>; 3] =
        [Arc::new(SecondsAreTimes), Arc::new(NestedFunctionPlanner), Arc::new(FieldAccessPlanner)];
    for planner in planners {
        let _ = session.register_expr_planner(planner);
    }
    session
}

/// Lets a time be compared with a number of seconds since 1970: `timestamp > 881250949`. That is
/// how the data sets write times, and SQL alone would refuse it.
#[derive(Debug)]
struct SecondsAreTimes;

impl ExprPlanner for SecondsAreTimes {
    fn plan_binary_op(
        &self,
        mut expr: RawBinaryExpr,
        schema: &DFSchema,
    ) -> Result<PlannerResult<RawBinaryExpr>, DataFusionError> {
        use BinaryOperator::{Eq, Gt, GtEq, Lt, LtEq, NotEq};
        if !matches!(expr.op, Eq | NotEq | Lt | LtEq | Gt | GtEq) {
            return Ok(PlannerResult::Original(expr));
        }
        let seconds = |number: Expr| cast(number, DataType::Timestamp(TimeUnit::Second, None));
        match (expr.left.get_type(schema)?, expr.right.get_type(schema)?) {
            (DataType::Timestamp(..), number) if number.is_integer() => expr.right = seconds(expr.right),
            (number, DataType::Timestamp(..)) if number.is_integer() => expr.left = seconds(expr.left),
            _ => {}
        }
        Ok(PlannerResult::Original(expr))
    }
}

/// Refuses what a condition may not hold.
fn per_row(expr: &Expr) -> Result<(), SqlError> {
    let mut refused = None;
    let walked = expr.apply(|expr| {
        refused = match expr {
            Expr::AggregateFunction(call) => Some(format!("the aggregate {}", call.func.name())),
            Expr::WindowFunction(_) => Some("a window function".to_string()),
            Expr::Exists(_) | Expr::InSubquery(_) | Expr::ScalarSubquery(_) | Expr::SetComparison(_) => {
                Some("a subquery".to_string())
            }
            Expr::Placeholder(_) | Expr::ScalarVariable(..) => Some("a placeholder".to_string()),
            Expr::Unnest(_) => Some("unnest".to_string()),
            Expr::ScalarFunction(call) if call.func.signature().volatility != Volatility::Immutable => {
                Some(format!("{}()", call.func.name()))
            }
            _ => return Ok(TreeNodeRecursion::Continue),
        };
        Ok(TreeNodeRecursion::Stop)
    });
    walked.map_err(|error| SqlError::Plan(first_line(&error)))?;
    refused.map_or(Ok(()), |what| Err(SqlError::NotPerRow(what)))
}

/// An error of the planner in the words of this engine.
fn explained(error: &DataFusionError, columns: &[Column]) -> SqlError {
    use datafusion::common::SchemaError;
    if let DataFusionError::SchemaError(schema, _) = error.find_root()
        && let SchemaError::FieldNotFound { field, .. } = schema.as_ref()
    {
        let name = field.name.clone();
        let names = || columns.iter().map(|column| column.name.as_str());
        let mut hint = did_you_mean(&name, names());
        if hint.is_empty() {
            hint = format!("; there are {}", names().collect::<Vec<_>>().join(", "));
        }
        return SqlError::Column { name, hint };
    }
    SqlError::Plan(first_line(error))
}

fn first_line(error: &DataFusionError) -> String {
    let text = error.strip_backtrace();
    text.lines().next().unwrap_or_default().to_string()
}

/// Runs one `SELECT` over tables that are given by name. At least one batch comes back, so that an
/// empty result still has its columns.
///
/// # Errors
/// If the SQL does not parse, is more than a query, or fails on the data.
pub async fn query(tables: Vec<(String, RecordBatch)>, sql: &str) -> Result<Vec<RecordBatch>, SqlError> {
    let plan = |error: DataFusionError| SqlError::Plan(first_line(&error));
    let session = session();
    for (name, batch) in tables {
        // The name as it is, not split at dots.
        session.register_batch(datafusion::common::TableReference::bare(name), batch).map_err(plan)?;
    }
    let only_queries =
        SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    let frame = session.sql_with_options(sql, only_queries).await.map_err(plan)?;
    let schema = Arc::new(frame.schema().as_arrow().clone());
    let mut batches = frame.collect().await.map_err(|error| SqlError::Run(first_line(&error)))?;
    if batches.is_empty() {
        batches.push(RecordBatch::new_empty(schema));
    }
    Ok(batches)
}

/// [`query`] for callers without a runtime; it takes the calling thread.
///
/// # Errors
/// As [`query`].
pub fn query_blocking(tables: Vec<(String, RecordBatch)>, sql: &str) -> Result<Vec<RecordBatch>, SqlError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .map_err(|error| SqlError::Run(error.to_string()))?;
    runtime.block_on(query(tables, sql))
}

/// Writes batches as JSON lines, keys in column order, nulls included.
///
/// # Errors
/// If `out` fails, or a column has no JSON form.
pub fn write_json_lines(batches: &[RecordBatch], out: impl Write) -> io::Result<()> {
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(out);
    for batch in batches {
        writer.write(batch).map_err(io::Error::other)?;
    }
    writer.finish().map_err(io::Error::other)
}
