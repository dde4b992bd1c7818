//! The `dataset` connector: MovieLens under its customary column names, whatever file it comes in.
//!
//! Both data sets give the same three tables, so a pipeline changes from one to the other by its
//! name. What the files write differently (a year inside a title, an occupation as a number) is
//! evened out here and nowhere else; what they write wrongly (`unknown` as a genre) is kept.

use std::path::{Path, PathBuf};

use coea_operators::{
    row::{Row, Value},
    schema::{Column, Type},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Offsets, Sink, Source, SourceError, SourceTable, TimeUnit,
    cell::Cell,
    collect::Collector,
    decode::{Finish, Reading, TextFormat},
    text::{self, TextFile},
};
use crate::fetch;

/// A public data set by name.
///
/// Tables and columns: `interactions` (user_id u64, item_id u64, rating f64, timestamp), keyed by
/// user_id; `items` (item_id u64, title text, year u64, genres list&lt;text&gt;), keyed by item_id;
/// `users` (user_id u64, age u64, gender text, occupation text, zip_code text), keyed by user_id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DatasetParams {
    /// Which data set.
    pub name: DatasetName,
    /// Which of its tables.
    pub table: DatasetTable,
    /// The folder that holds its files, relative to the pipeline's folder. `movielens-100k` is
    /// fetched without it; `movielens-1m` needs it.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// A SQL condition on one row, such as `rating >= 4`; rows on which it is not true are not read.
    #[serde(default, rename = "where")]
    pub condition: Option<String>,
}

/// The data sets the engine knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DatasetName {
    /// 100,000 ratings of 1,682 films by 943 users, fetched by itself.
    #[serde(rename = "movielens-100k")]
    Movielens100k,
    /// 1,000,209 ratings of 3,883 films by 6,040 users: `ratings.dat`, `movies.dat`, `users.dat`
    /// in a folder of yours. Ages are the lower ends of MovieLens' brackets.
    #[serde(rename = "movielens-1m")]
    Movielens1m,
}

impl DatasetName {
    /// The name as pipelines write it.
    pub fn as_str(self) -> &'static str {
        match self {
            DatasetName::Movielens100k => "movielens-100k",
            DatasetName::Movielens1m => "movielens-1m",
        }
    }
}

/// A table of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DatasetTable {
    /// Who rated what, and when.
    Interactions,
    /// The films.
    Items,
    /// The people.
    Users,
}

/// Names and types of columns.
type Declared = &'static [(&'static str, &'static str)];

impl DatasetTable {
    fn columns(self) -> Declared {
        match self {
            DatasetTable::Interactions => {
                &[("user_id", "u64"), ("item_id", "u64"), ("rating", "f64"), ("timestamp", "timestamp")]
            }
            DatasetTable::Items => {
                &[("item_id", "u64"), ("title", "text"), ("year", "u64"), ("genres", "list<text>")]
            }
            DatasetTable::Users => &[
                ("user_id", "u64"),
                ("age", "u64"),
                ("gender", "text"),
                ("occupation", "text"),
                ("zip_code", "text"),
            ],
        }
    }
}

/// How a table lies in its file.
struct Layout {
    file: &'static str,
    format: TextFormat,
    /// The columns of the file that are read; in order, where it has no header.
    columns: Declared,
    /// Names in the file → names above.
    rename: &'static [(&'static str, &'static str)],
    finish: Option<Finish>,
}

impl Layout {
    fn of(name: DatasetName, table: DatasetTable) -> Layout {
        use DatasetName::{Movielens1m, Movielens100k};
        use DatasetTable::{Interactions, Items, Users};
        let (file, format) = match (name, table) {
            (Movielens100k, Interactions) => ("ml-100k.inter", TextFormat::Recbole),
            (Movielens100k, Items) => ("ml-100k.item", TextFormat::Recbole),
            (Movielens100k, Users) => ("ml-100k.user", TextFormat::Recbole),
            (Movielens1m, Interactions) => ("ratings.dat", TextFormat::Movielens),
            (Movielens1m, Items) => ("movies.dat", TextFormat::Movielens),
            (Movielens1m, Users) => ("users.dat", TextFormat::Movielens),
        };
        let plain = Layout { file, format, columns: table.columns(), rename: &[], finish: None };
        match (name, table) {
            (_, Interactions) | (Movielens100k, Users) => plain,
            (Movielens100k, Items) => Layout {
                columns: &[("item_id", "u64"), ("title", "text"), ("year", "text"), ("genres", "list<text>")],
                rename: &[("movie_title", "title"), ("release_year", "year"), ("class", "genres")],
                finish: Some(year_as_number),
                ..plain
            },
            (Movielens1m, Items) => Layout {
                columns: &[("item_id", "u64"), ("title", "text"), ("genres", "list<text>")],
                finish: Some(year_from_title),
                ..plain
            },
            (Movielens1m, Users) => Layout {
                columns: &[
                    ("user_id", "u64"),
                    ("gender", "text"),
                    ("age", "u64"),
                    ("occupation", "u64"),
                    ("zip_code", "text"),
                ],
                finish: Some(occupation_in_words),
                ..plain
            },
        }
    }

    fn reading(&self, key: &str) -> Reading {
        let cell = |&(name, ty): &(&str, &str)| Cell {
            name: name.to_string(),
            ty: declared(ty),
            required: name == key || name == "timestamp",
            time: name == "timestamp",
        };
        Reading {
            cells: self.columns.iter().map(cell).collect(),
            rename: self.rename.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect(),
            delta: false,
            finish: self.finish,
        }
    }
}

fn declared(ty: &str) -> Type {
    ty.parse().unwrap_or_else(|_| unreachable!("the types of the tables above are types"))
}

/// `item_id, title, year as text, genres`: the file has one film without a year, `unkonwn`.
fn year_as_number(row: Row) -> Result<Row, String> {
    let mut cells = row.0.to_vec();
    cells[2] = cells[2].as_text().and_then(|year| year.parse().ok()).map_or(Value::Null, Value::U64);
    Ok(Row::new(cells))
}

/// `item_id, "Toy Story (1995)", genres` → `item_id, title, year, genres`.
fn year_from_title(row: Row) -> Result<Row, String> {
    let [id, title, genres] = &row[..] else {
        unreachable!("a row of movies.dat was read as three columns");
    };
    let split = title.as_text().and_then(|title| {
        let (name, year) = title.trim_end().strip_suffix(')')?.rsplit_once(" (")?;
        Some((name.to_string(), year.parse().ok()?))
    });
    let (title, year) = match split {
        Some((name, year)) => (Value::text(name), Value::U64(year)),
        None => (title.clone(), Value::Null),
    };
    Ok(Row::from([id.clone(), title, year, genres.clone()]))
}

/// Occupations of MovieLens 1M by their number, in the words of MovieLens 100K where it has them.
const OCCUPATIONS: [&str; 21] = [
    "other",
    "educator",
    "artist",
    "administrator",
    "college student",
    "customer service",
    "doctor",
    "executive",
    "farmer",
    "homemaker",
    "K-12 student",
    "lawyer",
    "programmer",
    "retired",
    "salesman",
    "scientist",
    "self-employed",
    "technician",
    "tradesman",
    "none",
    "writer",
];

/// `user_id, gender, age, occupation as number, zip_code` → `user_id, age, gender, occupation, zip_code`.
fn occupation_in_words(row: Row) -> Result<Row, String> {
    let [id, gender, age, occupation, zip] = &row[..] else {
        unreachable!("a row of users.dat was read as five columns");
    };
    let occupation = match occupation {
        Value::U64(code) => {
            let name = usize::try_from(*code).ok().and_then(|code| OCCUPATIONS.get(code));
            Value::text(name.ok_or_else(|| format!("column `occupation`: there is no code {code}"))?)
        }
        _ => Value::Null,
    };
    Ok(Row::from([id.clone(), age.clone(), gender.clone(), occupation, zip.clone()]))
}

impl DatasetParams {
    pub(super) fn table(&self) -> SourceTable {
        let columns = self.table.columns();
        let key = if self.table == DatasetTable::Items { "item_id" } else { "user_id" };
        SourceTable {
            schema: columns.iter().map(|(name, ty)| Column::new(name, declared(ty))).collect(),
            key: vec![key.to_string()],
            time: (self.table == DatasetTable::Interactions).then(|| "timestamp".to_string()),
            unit: TimeUnit::Seconds,
            event_id: None,
            filter: None,
            rename: Default::default(),
        }
    }

    pub(super) fn open(
        &self,
        name: &str,
        folder: &Path,
        table: SourceTable,
    ) -> Result<DatasetSource, SourceError> {
        let path = self.path.as_ref().map(|path| folder.join(path));
        let data = fetch::dataset(self.name.as_str(), path.as_deref())?;
        let layout = Layout::of(self.name, self.table);
        Ok(DatasetSource {
            name: name.to_string(),
            path: data.folder.join(layout.file),
            reading: layout.reading(&table.key[0]),
            layout,
            table,
        })
    }
}

/// An open table of a data set.
pub struct DatasetSource {
    name: String,
    path: PathBuf,
    layout: Layout,
    reading: Reading,
    table: SourceTable,
}

impl Source for DatasetSource {
    fn table(&self) -> &SourceTable {
        &self.table
    }

    fn read_new(&mut self, from: &Offsets, sink: &mut Sink<'_>) -> Result<Offsets, SourceError> {
        // Named without its folder: the cache may move between two runs.
        let name = self.layout.file;
        if let Some(gone) = from.files.keys().find(|file| *file != name) {
            return Err(SourceError::Vanished { file: gone.clone() });
        }
        let mut out = Collector::new(&self.name, self.table.filter.as_deref(), sink);
        let file = TextFile { path: &self.path, name, format: self.layout.format, complete: true };
        let offset = text::read(file, &self.reading, from.files.get(name), &mut out)?;
        Ok(Offsets { files: [(name.to_string(), offset)].into() })
    }
}
