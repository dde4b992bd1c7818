//! A world as files: `world.json`, `users.parquet`, `items.parquet` and a file of events per day.
//!
//! A day is a file because that is how a log comes: a pipeline that has read some days takes the next
//! file as its delta. It is also what makes the bytes independent of threads, since a file is written
//! by one thread from first to last row, and what bounds memory, since a thread holds one row group.
//! A row is an exposure with `clicked` in it, not a row for each kind of event: what was shown and not
//! clicked is half of what can be learnt, the propensity belongs to the exposure, and a source that
//! wants clicks alone says `where: clicked`. The folder appears whole or not at all.

use std::{
    fs::{self, File},
    ops::Range,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use datafusion::{
    arrow::{
        array::{
            ArrayRef, BooleanArray, Float64Array, ListBuilder, RecordBatch, StringArray, StringBuilder,
            TimestampSecondArray, UInt64Array,
        },
        datatypes::Schema,
    },
    parquet::{
        arrow::ArrowWriter,
        basic::{Compression, Encoding, ZstdLevel},
        file::properties::{WriterProperties, WriterPropertiesBuilder},
        schema::types::ColumnPath,
    },
};
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use serde::Serialize;

use super::{
    WorldError,
    events::{Exposure, Today},
    population::Profile,
    truth::{Item, Truth, User},
};

/// Most rows of a row group: what a thread holds encoded.
pub(super) const ROW_GROUP: usize = 1 << 17;
/// Rows that are handed to the encoder together.
const BATCH: usize = 1 << 13;

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Written {
    /// Rows of `events`: items that were shown.
    pub interactions: u64,
    /// How many of them were clicked.
    pub clicks: u64,
    /// Files, `world.json` among them.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Writes a world into a folder that is not there yet, or empty; `progress` hears how many
/// interactions were written, and of how many.
///
/// # Errors
/// If something is in the folder, or it cannot be written.
pub fn generate(
    truth: &Truth,
    folder: &Path,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Written, WorldError> {
    if fs::read_dir(folder).map_or(folder.exists(), |mut inside| inside.next().is_some()) {
        return Err(WorldError::Occupied(folder.to_path_buf()));
    }
    let parent = match folder.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(WorldError::io(parent))?;
    let aside = tempfile::Builder::new().prefix(".world-").tempdir_in(parent);
    let aside = aside.map_err(WorldError::io(parent))?;
    let made = aside.path().join("world");
    let events = made.join("events");
    fs::create_dir_all(&events).map_err(WorldError::io(&events))?;
    let mut written = write_days(truth, &events, progress)?;
    written.bytes +=
        write_tables(&made.join("users.parquet"), truth.parameters().users, |part| users(truth, part))?;
    written.bytes +=
        write_tables(&made.join("items.parquet"), truth.parameters().items, |part| items(truth, part))?;
    let described = made.join("world.json");
    truth.parameters().write(&described)?;
    written.bytes += fs::metadata(&described).map_err(WorldError::io(&described))?.len();
    written.files += 3;
    fs::rename(&made, folder).map_err(WorldError::io(folder))?;
    Ok(written)
}

fn write_days(
    truth: &Truth,
    folder: &Path,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Written, WorldError> {
    let parameters = truth.parameters();
    let done = AtomicU64::new(0);
    let more = |rows: u64| {
        let before = done.fetch_add(rows, Ordering::Relaxed);
        progress(before + rows, parameters.interactions);
    };
    let day = |day: u32| write_day(truth, day, &folder.join(format!("day-{day:05}.parquet")), &more);
    let add = |a: Written, b: Written| Written {
        interactions: a.interactions + b.interactions,
        clicks: a.clicks + b.clicks,
        files: a.files + b.files,
        bytes: a.bytes + b.bytes,
    };
    (0..parameters.days).into_par_iter().map(day).try_reduce(Written::default, |a, b| Ok(add(a, b)))
}

fn write_day(
    truth: &Truth,
    day: u32,
    path: &Path,
    more: &(dyn Fn(u64) + Sync),
) -> Result<Written, WorldError> {
    let mut written = Written { files: 1, ..Written::default() };
    let mut rows = Rows::default();
    let mut out = writer(path, rows.batch().schema(), event_properties())?;
    let mut hand_over = |rows: &mut Rows| {
        more(rows.users.len() as u64);
        out.write(&rows.batch()).map_err(|error| WorldError::encoding(path, error))
    };
    let mut today = Today::new(truth, day);
    for user in truth.users() {
        today.of_user(user, &mut |exposure| {
            written.interactions += 1;
            written.clicks += u64::from(exposure.clicked);
            rows.push(&exposure);
            if rows.users.len() == BATCH { hand_over(&mut rows) } else { Ok(()) }
        })?;
    }
    hand_over(&mut rows)?;
    written.bytes = finish(out, path)?;
    Ok(written)
}

/// Rows of events on their way, column by column.
#[derive(Default)]
struct Rows {
    users: Vec<u64>,
    items: Vec<u64>,
    timestamps: Vec<i64>,
    slates: Vec<u64>,
    propensities: Vec<f64>,
    clicked: Vec<bool>,
}

impl Rows {
    fn push(&mut self, exposure: &Exposure) {
        self.users.push(exposure.user.id());
        self.items.push(exposure.item.id());
        self.timestamps.push(exposure.timestamp);
        self.slates.push(exposure.slate);
        self.propensities.push(exposure.propensity);
        self.clicked.push(exposure.clicked);
    }

    /// Takes the rows out.
    fn batch(&mut self) -> RecordBatch {
        let rows = std::mem::take(self);
        table([
            ("user_id", Arc::new(UInt64Array::from(rows.users)) as ArrayRef),
            ("item_id", Arc::new(UInt64Array::from(rows.items))),
            ("timestamp", Arc::new(TimestampSecondArray::from(rows.timestamps))),
            ("slate", Arc::new(UInt64Array::from(rows.slates))),
            ("propensity", Arc::new(Float64Array::from(rows.propensities))),
            ("clicked", Arc::new(BooleanArray::from(rows.clicked))),
        ])
    }
}

/// Writes a table of so many rows part by part, and says how long the file is.
fn write_tables(path: &Path, rows: u32, part: impl Fn(Range<u32>) -> RecordBatch) -> Result<u64, WorldError> {
    let mut out = writer(path, part(0..0).schema(), properties())?;
    for from in (0..rows).step_by(BATCH) {
        let batch = part(from..rows.min(from + BATCH as u32));
        out.write(&batch).map_err(|error| WorldError::encoding(path, error))?;
    }
    finish(out, path)
}

fn users(truth: &Truth, part: Range<u32>) -> RecordBatch {
    let users: Vec<(u64, Profile)> = part.map(User).map(|user| (user.id(), truth.profile(user))).collect();
    let number = |of: fn(&(u64, Profile)) -> u64| -> ArrayRef {
        Arc::new(UInt64Array::from_iter_values(users.iter().map(of)))
    };
    let text = |of: fn(&(u64, Profile)) -> &'static str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(users.iter().map(of)))
    };
    table([
        ("user_id", number(|(id, _)| *id)),
        ("age", number(|(_, profile)| profile.age)),
        ("gender", text(|(_, profile)| profile.gender)),
        ("occupation", text(|(_, profile)| profile.occupation)),
    ])
}

fn items(truth: &Truth, part: Range<u32>) -> RecordBatch {
    let (mut ids, mut titles) = (Vec::new(), StringBuilder::new());
    let mut categories = ListBuilder::new(StringBuilder::new());
    for item in part.map(Item) {
        let names: Vec<&str> = truth.categories_of(item).map(|category| truth.name(category)).collect();
        ids.push(item.id());
        titles.append_value(format!("{} no. {}", names[0], item.id()));
        names.iter().for_each(|name| categories.values().append_value(name));
        categories.append(true);
    }
    table([
        ("item_id", Arc::new(UInt64Array::from(ids)) as ArrayRef),
        ("title", Arc::new(titles.finish())),
        ("categories", Arc::new(categories.finish())),
    ])
}

/// A table without nulls.
fn table<const N: usize>(columns: [(&str, ArrayRef); N]) -> RecordBatch {
    let columns = columns.map(|(name, array)| (name, array, false));
    match RecordBatch::try_from_iter_with_nullable(columns) {
        Ok(batch) => batch,
        Err(error) => unreachable!("columns of one length, made together: {error}"),
    }
}

fn properties() -> WriterPropertiesBuilder {
    let level = ZstdLevel::try_new(1).unwrap_or_default();
    // The library's version would be in the bytes else.
    WriterProperties::builder()
        .set_created_by("coea-engine".to_string())
        .set_compression(Compression::ZSTD(level))
        .set_max_row_group_row_count(Some(ROW_GROUP))
}

/// Numbers that grow from row to row are written as differences, the others as dictionaries.
fn event_properties() -> WriterPropertiesBuilder {
    ["user_id", "timestamp", "slate"].into_iter().fold(properties(), |properties, name| {
        properties
            .set_column_dictionary_enabled(ColumnPath::from(name), false)
            .set_column_encoding(ColumnPath::from(name), Encoding::DELTA_BINARY_PACKED)
    })
}

fn writer(
    path: &Path,
    schema: Arc<Schema>,
    properties: WriterPropertiesBuilder,
) -> Result<ArrowWriter<File>, WorldError> {
    let file = File::create_new(path).map_err(WorldError::io(path))?;
    ArrowWriter::try_new(file, schema, Some(properties.build()))
        .map_err(|error| WorldError::encoding(path, error))
}

/// Closes a file and says how long it is.
fn finish(mut writer: ArrowWriter<File>, path: &Path) -> Result<u64, WorldError> {
    writer.finish().map_err(|error| WorldError::encoding(path, error))?;
    Ok(writer.bytes_written() as u64)
}
