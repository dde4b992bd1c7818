//! Sources end to end: every format, growth and rewriting, garbage, conditions, deltas.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use coea_operators::row::{Row, Value};
use datafusion::{
    arrow::{
        array::{ArrayRef, Float64Array, RecordBatch, StringArray, TimestampMillisecondArray, UInt32Array},
        ipc::writer::{FileWriter, StreamWriter},
    },
    parquet::arrow::ArrowWriter,
};
use proptest::prelude::*;
use serde_json::json;

use super::*;

/// A pipeline's folder.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    fn append(&self, name: &str, bytes: &str) {
        fs::OpenOptions::new()
            .append(true)
            .open(self.path(name))
            .unwrap()
            .write_all(bytes.as_bytes())
            .unwrap();
    }
}

/// `user_id, item_id, rating, timestamp` out of `path`.
fn clicks(path: &str, format: &str) -> serde_json::Value {
    json!({
        "path": path, "format": format,
        "columns": { "user_id": "u64", "item_id": "u64", "rating": "f64", "timestamp": "u64" },
        "time": { "column": "timestamp", "unit": "s" },
    })
}

/// `serde_json` sorts maps here, so the columns are given as text to keep their order.
fn connector(with: serde_json::Value) -> SourceConnector {
    let sorted = with.to_string();
    let ordered = sorted.replace(
        r#"{"item_id":"u64","rating":"f64","timestamp":"u64","user_id":"u64"}"#,
        r#"{"user_id":"u64","item_id":"u64","rating":"f64","timestamp":"u64"}"#,
    );
    let mut with = serde_json::Deserializer::from_str(&ordered);
    SourceConnector::parse("files", &mut with).unwrap().unwrap()
}

fn open(folder: &Folder, with: serde_json::Value) -> Box<dyn Source> {
    let connector = connector(with);
    connector.open("events", folder.0.path(), &connector.table().unwrap()).unwrap()
}

fn dataset(with: serde_json::Value, folder: &Path) -> Box<dyn Source> {
    let connector = SourceConnector::parse("dataset", with).unwrap().unwrap();
    connector.open("events", folder, &connector.table().unwrap()).unwrap()
}

fn read(source: &mut dyn Source, from: &Offsets) -> Result<(Batch, Offsets), SourceError> {
    let mut all = Batch::default();
    let offsets = source.read_new(from, &mut |batch| {
        assert!(batch.records.len() <= BATCH_ROWS);
        all.records.extend(batch.records);
        all.dead.extend(batch.dead);
        all.filtered += batch.filtered;
        Ok(())
    })?;
    Ok((all, offsets))
}

fn read_delta(path: &Path, table: &SourceTable) -> Result<Batch, SourceError> {
    let mut all = Batch::default();
    DeltaFile::open(path, "events", table)?.read(&mut |batch| {
        all.records.extend(batch.records);
        all.dead.extend(batch.dead);
        Ok(())
    })?;
    Ok(all)
}

fn click(user: u64, item: u64, rating: f64, time: i64) -> Row {
    Row::from([Value::U64(user), Value::U64(item), Value::float(rating), Value::I64(time)])
}

fn rows(batch: &Batch) -> Vec<Row> {
    batch.records.iter().map(|record| record.row.clone()).collect()
}

#[test]
fn every_text_format_gives_the_same_rows() {
    let folder = Folder::new();
    for (format, text) in [
        (
            "csv",
            "\u{feff}rating,user_id,item_id,timestamp,extra\r\n4,1,10,100,x\r\n\"5.0\",2,20,200,\"a\nb\"\r\n",
        ),
        ("tsv", "user_id\titem_id\trating\ttimestamp\n1\t10\t4\t100\n2\t20\t5\t200\n"),
        (
            "recbole",
            "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t10\t4\t100\n2\t20\t5\t200.0\n",
        ),
        ("movielens", "1::10::4::100\n2::20::5::200\n"),
        (
            "jsonl",
            "\u{feff}{\"user_id\":1,\"item_id\":10,\"rating\":4,\"timestamp\":100,\"x\":{}}\n\n\
             {\"timestamp\":200,\"rating\":5.0,\"item_id\":\"20\",\"user_id\":2}\n",
        ),
    ] {
        folder.write(format, text);
        let mut source = open(&folder, clicks(format, format));
        assert_eq!(source.table().key, ["user_id"]);
        let (batch, offsets) = read(&mut *source, &Offsets::default()).unwrap();
        assert_eq!(batch.dead, [], "{format}");
        assert_eq!(rows(&batch), [click(1, 10, 4.0, 100), click(2, 20, 5.0, 200)], "{format}");
        assert_eq!(offsets.files[format].bytes, text.len() as u64);
        assert_eq!(read(&mut *source, &offsets).unwrap(), (Batch::default(), offsets));
    }
}

#[test]
fn appended_rows_and_new_files_are_the_delta_and_a_torn_line_waits() {
    let folder = Folder::new();
    folder.write("in/a.csv", "user_id,item_id,rating,timestamp\n1,10,4,100\n2,20");
    let mut source = open(&folder, clicks("in/*.csv", "csv"));
    let (batch, first) = read(&mut *source, &Offsets::default()).unwrap();
    assert_eq!(rows(&batch), [click(1, 10, 4.0, 100)]);
    assert_eq!(first.waiting(), 4);

    folder.append("in/a.csv", ",5,200\nbad\n");
    folder.write("in/b.csv", "timestamp,user_id,item_id,rating\n300,3,30,1\n");
    let (batch, second) = read(&mut *source, &first).unwrap();
    assert_eq!(rows(&batch), [click(2, 20, 5.0, 200), click(3, 30, 1.0, 300)]);
    let dead = &batch.dead[0];
    assert_eq!((dead.file.as_str(), dead.line, dead.byte, dead.raw.as_str()), ("in/a.csv", 4, 55, "bad"));
    assert_eq!((dead.source.as_str(), dead.cause.as_str()), ("events", "1 fields, expected 4"));
    assert_eq!(second.waiting(), 0);

    let (batch, whole) = read(&mut *source, &Offsets::default()).unwrap();
    assert_eq!((batch.records.len(), whole), (3, second));
}

#[test]
fn a_rewritten_or_vanished_file_is_refused() {
    let folder = Folder::new();
    let text = "1::10::4::100\n2::20::5::200\n";
    let rewrites = [
        text.replace("20", "21"),
        text[..14].to_string(),
        format!("{}3::30::1::1\n", text.replace('4', "3")),
    ];
    for (at, rewrite) in rewrites.iter().enumerate() {
        let name = format!("{at}.dat");
        folder.write(&name, text);
        let mut source = open(&folder, clicks(&name, "movielens"));
        let (_, mut offsets) = read(&mut *source, &Offsets::default()).unwrap();
        folder.write(&name, rewrite);
        // As if the clock had not moved between the two writes.
        offsets.files.get_mut(&name).unwrap().modified_ns -= 1;
        let error = read(&mut *source, &offsets).unwrap_err();
        assert!(matches!(error, SourceError::Rewritten { .. }), "{error}");
        assert_eq!(error.exit_code(), 66);
        fs::remove_file(folder.path(&name)).unwrap();
        folder.write("other.dat", text);
        let error = read(&mut *open(&folder, clicks("*.dat", "movielens")), &offsets).unwrap_err();
        assert!(matches!(error, SourceError::Vanished { .. }), "{error}");
    }
    let error = read(&mut *open(&folder, clicks("none/*.csv", "csv")), &Offsets::default()).unwrap_err();
    assert_eq!((error.exit_code(), matches!(error, SourceError::NoFile { .. })), (66, true));
}

#[test]
fn a_touched_file_is_not_new() {
    let folder = Folder::new();
    folder.write("a", "1::10::4::100\n");
    let mut source = open(&folder, clicks("a", "movielens"));
    let (_, mut offsets) = read(&mut *source, &Offsets::default()).unwrap();
    offsets.files.get_mut("a").unwrap().modified_ns = 0;
    let (batch, after) = read(&mut *source, &offsets).unwrap();
    assert_eq!(batch, Batch::default());
    assert_eq!(after.files["a"].bytes, offsets.files["a"].bytes);
}

#[test]
fn one_broken_record_in_a_hundred_costs_no_good_row() {
    let folder = Folder::new();
    let broken = [
        "x,1,1,1",
        "\"1,1,1,1",
        "1,1,NaN,1",
        "1,1,1,-1",
        "1,1",
        "18446744073709551616,1,1,1",
        ",1,1,1",
        "1,\"1\"1,1,1",
    ];
    let mut text = b"user_id,item_id,rating,timestamp\n".to_vec();
    let (mut good, mut bad) = (0, Vec::new());
    for line in 2..=20_000u64 {
        if line % 100 == 0 {
            let what = broken[bad.len() % broken.len()];
            text.extend(what.as_bytes());
            if bad.len() % 50 == 0 {
                text.push(0xFF);
            }
            text.push(b'\n');
            bad.push(line);
        } else {
            writeln!(text, "{line},1,2.5,{line}").unwrap();
            good += 1;
        }
    }
    folder.write("a.csv", text);
    let (batch, _) = read(&mut *open(&folder, clicks("a.csv", "csv")), &Offsets::default()).unwrap();
    assert_eq!(batch.records.len(), good);
    assert_eq!(batch.dead.iter().map(|dead| dead.line).collect::<Vec<_>>(), bad);
    assert!(batch.dead.iter().all(|dead| !dead.cause.is_empty() && !dead.raw.is_empty()));
}

#[test]
fn empty_files_and_bare_headers_have_no_rows() {
    let folder = Folder::new();
    for text in ["", "user_id,item_id,rating,timestamp", "user_id,item_id,rating,timestamp\n", "\n\n"] {
        folder.write("a.csv", text);
        let (batch, _) = read(&mut *open(&folder, clicks("a.csv", "csv")), &Offsets::default()).unwrap();
        assert_eq!(batch, Batch::default(), "{text:?}");
    }
    folder.write("a.csv", "user_id,item_id,rating,timest");
    let mut source = open(&folder, clicks("a.csv", "csv"));
    let (_, offsets) = read(&mut *source, &Offsets::default()).unwrap();
    folder.append("a.csv", "amp\n1,10,4,100\n");
    assert_eq!(rows(&read(&mut *source, &offsets).unwrap().0), [click(1, 10, 4.0, 100)]);
}

#[test]
fn wrong_columns_stop_at_the_file_with_a_suggestion() {
    let folder = Folder::new();
    folder.write("a.csv", "user_id,itemid,rating,timestamp\n");
    folder.write("b.csv", "user_id,item_id,rating,user_id,timestamp\n");
    for (file, part) in [("a.csv", "did you mean `itemid`"), ("b.csv", "`user_id` is there twice")] {
        let error = read(&mut *open(&folder, clicks(file, "csv")), &Offsets::default()).unwrap_err();
        assert!(matches!(error, SourceError::Columns { .. }), "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn mistakes_in_the_parameters_are_all_reported() {
    let mut with = clicks("a.csv", "csv");
    with["time"]["column"] = json!("timestmp");
    with["event_id"] = json!("id");
    with["rename"] = json!({ "who": "user" });
    with["key"] = json!(["user_id", "itm_id"]);
    let wrong = connector(with).table().unwrap_err();
    let at: Vec<&str> = wrong.iter().map(|error| error.at.as_str()).collect();
    assert_eq!(at, ["time.column", "event_id", "key", "rename.who"]);
    assert!(wrong[0].message.contains("did you mean `timestamp`"));

    let unknown = json!({ "path": "a", "format": "csv", "columns": { "a": "u64" }, "colums": 1 });
    assert!(SourceConnector::parse("files", unknown).unwrap().unwrap_err().to_string().contains("colums"));
    let wrong = json!({ "path": "a", "format": "csv", "columns": { "a": "u46" } });
    assert!(SourceConnector::parse("files", wrong).unwrap().unwrap_err().to_string().contains("u46"));
    assert!(SourceConnector::parse("kafka", json!({})).is_none());
    let [_, (_, schema)] = SourceConnector::json_schemas();
    assert!(schema.to_value()["properties"]["where"]["description"].as_str().unwrap().contains("SQL"));
}

#[test]
fn a_condition_filters_and_what_it_fails_on_is_a_dead_letter() {
    let folder = Folder::new();
    folder.write("a.csv", "user_id,item_id,rating,timestamp\n1,10,4,100\n2,20,,200\n3,30,3,300\n4,0,5,400\n");
    let mut with = clicks("a.csv", "csv");
    with["where"] = json!("rating >= 4 AND 100 / item_id < 50 AND timestamp > 0");
    let (batch, _) = read(&mut *open(&folder, with), &Offsets::default()).unwrap();
    assert_eq!(rows(&batch), [click(1, 10, 4.0, 100)]);
    assert_eq!(batch.filtered, 2);
    assert_eq!((batch.dead[0].line, batch.dead.len()), (5, 1));
    assert!(batch.dead[0].cause.contains("where"), "{}", batch.dead[0].cause);
}

#[test]
fn a_condition_that_does_not_fit_is_refused_before_any_file_is_read() {
    for (sql, part) in [
        ("ratign > 4", "did you mean `rating`"),
        ("rating", "not true or false"),
        ("rating >", "expected"),
        ("count(*) > 1", "count"),
        ("random() > 0.5", "random"),
        ("timestamp < now()", "now"),
        ("user_id IN (SELECT 1)", "subquery"),
        ("rating > 4; DROP TABLE x", ""),
        ("rating > $1", ""),
        ("genres = 3", "genres"),
    ] {
        let mut with = clicks("a.csv", "csv");
        with["where"] = json!(sql);
        let wrong = connector(with).table().expect_err(sql);
        assert_eq!(wrong[0].at, "where");
        assert!(wrong[0].message.to_lowercase().contains(part), "{sql}: {}", wrong[0].message);
    }
}

#[test]
fn a_fine_time_unit_loses_nothing() {
    let folder = Folder::new();
    folder.write("a.csv", "user_id,item_id,rating,timestamp\n1,10,4,1700000000123\n");
    let mut with = clicks("a.csv", "csv");
    with["time"]["unit"] = json!("ms");
    let mut source = open(&folder, with);
    assert_eq!(source.table().schema[3].ty, Type::I64);
    assert_eq!(
        rows(&read(&mut *source, &Offsets::default()).unwrap().0),
        [click(1, 10, 4.0, 1_700_000_000_123)]
    );
}

/// Three rows; the second has a fraction of a second, the third no user.
fn arrow_batch() -> RecordBatch {
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("who", std::sync::Arc::new(UInt32Array::from(vec![Some(1), Some(2), None])) as ArrayRef),
        ("item_id", std::sync::Arc::new(StringArray::from(vec!["10", "20", "30"]))),
        ("rating", std::sync::Arc::new(Float64Array::from(vec![4.0, 5.0, 1.0]))),
        ("timestamp", std::sync::Arc::new(TimestampMillisecondArray::from(vec![100_000, 200_500, 300_000]))),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true))).unwrap()
}

#[test]
fn columnar_files_are_read_whole_and_cast_exactly() {
    let folder = Folder::new();
    let batch = arrow_batch();
    let mut parquet = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    parquet.write(&batch).unwrap();
    let mut file = FileWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    file.write(&batch).unwrap();
    let mut stream = StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    stream.write(&batch).unwrap();
    for (name, format, bytes) in [
        ("a.parquet", "parquet", parquet.into_inner().unwrap()),
        ("a.arrow", "arrow", file.into_inner().unwrap()),
        ("b.arrow", "arrow", stream.into_inner().unwrap()),
    ] {
        folder.write(name, &bytes);
        let mut with = clicks(name, format);
        with["rename"] = json!({ "who": "user_id" });
        let mut source = open(&folder, with);
        let (batch, offsets) = read(&mut *source, &Offsets::default()).unwrap();
        assert_eq!(rows(&batch), [click(1, 10, 4.0, 100)]);
        let dead: Vec<(u64, &str)> = batch.dead.iter().map(|dead| (dead.line, dead.cause.as_str())).collect();
        assert_eq!(dead[0].0, 2);
        assert!(dead[0].1.contains("declared time unit"), "{dead:?}");
        assert_eq!(dead[1], (3, "column `user_id`: is empty"));
        assert_eq!(read(&mut *source, &offsets).unwrap(), (Batch::default(), offsets.clone()));
        assert_eq!(read_delta(&folder.path(name), source.table()).unwrap().records, batch.records);
        folder.write(name, &bytes[..bytes.len() - 1]);
        assert!(matches!(read(&mut *source, &offsets), Err(SourceError::Rewritten { .. })));
        if name != "b.arrow" {
            let error = read(&mut *source, &Offsets::default()).unwrap_err();
            assert!(matches!(error, SourceError::Format { .. }), "{error}");
        }
        // Any damaged byte is an error or other rows, never a panic.
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0xFF;
            folder.write(name, &damaged);
            let _ = read(&mut *source, &Offsets::default());
        }
    }
}

#[test]
fn deltas_carry_signs_and_refuse_what_they_do_not_know() {
    let folder = Folder::new();
    let table = connector(clicks("a.csv", "csv")).table().unwrap();
    let csv = folder.write("d.csv", "diff,user_id,item_id,rating,timestamp\n1,1,10,4,100\n-1,2,20,5,200\n,3,30,1,300\n0,1,1,1,1\nx,1,1,1,1\n2,4,40,2,400");
    let batch = read_delta(&csv, &table).unwrap();
    let diffs: Vec<i64> = batch.records.iter().map(|record| record.diff).collect();
    assert_eq!((diffs, batch.dead.len()), (vec![1, -1, 1, 2], 2));
    assert_eq!(batch.records[3].row, click(4, 40, 2.0, 400));

    let json = folder.write("d", "{\"user_id\":1,\"item_id\":10,\"rating\":4,\"timestamp\":100,\"diff\":-1}\n{\"user_id\":1,\"user_id\":2}\n{\"user_id\":1,\"itemid\":10}\n[]\n");
    let batch = read_delta(&json, &table).unwrap();
    assert_eq!(batch.records, [Record { row: click(1, 10, 4.0, 100), diff: -1 }]);
    let causes: Vec<&str> = batch.dead.iter().map(|dead| dead.cause.as_str()).collect();
    assert!(causes[0].contains("twice") && causes[1].contains("did you mean `item_id`"), "{causes:?}");

    let bare = folder.write("e.csv", "user_id,item_id,rating,timestamp\n");
    assert_eq!(read_delta(&bare, &table).unwrap(), Batch::default());
    let typo = folder.write("f.csv", "user_id,item_id,rating,timestamp,dif\n1,10,4,100,-1\n");
    assert!(read_delta(&typo, &table).unwrap_err().to_string().contains("did you mean `diff`"));
    assert_eq!(read_delta(&folder.path("none.csv"), &table).unwrap_err().exit_code(), 66);

    let delta = DeltaFile::open(&bare, "events", &table).unwrap();
    assert_eq!(delta.digest(), blake3::hash(&fs::read(&bare).unwrap()).to_hex().as_str());
    folder.append("e.csv", "1,10,4,100\n");
    assert!(matches!(delta.read(&mut |_| Ok(())), Err(SourceError::Rewritten { .. })));
}

#[test]
fn a_line_without_end_is_bounded() {
    let folder = Folder::new();
    let mut text = vec![b'7'; frame::MAX_RECORD + 5];
    folder.write("a.dat", &text);
    let mut source = open(&folder, clicks("a.dat", "movielens"));
    let (batch, waiting) = read(&mut *source, &Offsets::default()).unwrap();
    assert_eq!((batch, waiting.files["a.dat"].bytes), (Batch::default(), 0));
    text.extend(b"\n1::10::4::100\n");
    folder.write("a.dat", &text);
    let (batch, offsets) = read(&mut *source, &waiting).unwrap();
    assert_eq!((rows(&batch), batch.dead[0].raw.len()), (vec![click(1, 10, 4.0, 100)], 1024));
    assert_eq!(offsets.files["a.dat"].digest, blake3::hash(&text).to_hex().as_str());
}

#[test]
fn movielens_100k_is_fetched_and_read() {
    let table = |table: &str| {
        let with = json!({ "name": "movielens-100k", "table": table });
        dataset(with, Path::new("."))
    };
    let (events, offsets) = read(&mut *table("interactions"), &Offsets::default()).unwrap();
    assert_eq!((events.records.len(), events.dead.len()), (100_000, 0));
    assert_eq!(events.records[0].row, click(196, 242, 3.0, 881_250_949));
    assert_eq!(read(&mut *table("interactions"), &offsets).unwrap(), (Batch::default(), offsets));

    let (items, _) = read(&mut *table("items"), &Offsets::default()).unwrap();
    assert_eq!((items.records.len(), items.dead.len()), (1682, 0));
    let genres = |names: &[&str]| Value::list(names.iter().map(Value::text));
    assert_eq!(
        items.records[0].row,
        Row::from([
            Value::U64(1),
            Value::text("Toy Story"),
            Value::U64(1995),
            genres(&["Animation", "Children's", "Comedy"])
        ])
    );
    let nameless = items.records.iter().find(|record| record.row[0] == Value::U64(267)).unwrap();
    assert_eq!((&nameless.row[2], &nameless.row[3]), (&Value::Null, &genres(&["unknown"])));

    let (users, _) = read(&mut *table("users"), &Offsets::default()).unwrap();
    assert_eq!((users.records.len(), users.dead.len()), (943, 0));
    assert_eq!(users.records[0].row[3], Value::text("technician"));
}

#[test]
fn movielens_1m_is_read_from_its_folder() {
    let folder = Folder::new();
    folder.write("ml/ratings.dat", "1::1193::5::978300760\n");
    folder.write("ml/movies.dat", b"1::Toy Story (1995)::Animation|Children's\n73::Mis\xe9rables, Les (1995)::Drama\n4::No Year::Drama\n");
    folder.write("ml/users.dat", "1::F::1::10::48067\n2::M::56::16::70072\n3::M::25::99::1\n");
    let read_table = |table: &str| {
        let with = json!({ "name": "movielens-1m", "table": table, "path": "ml" });
        read(&mut *dataset(with, folder.0.path()), &Offsets::default()).unwrap().0
    };
    assert_eq!(rows(&read_table("interactions")), [click(1, 1193, 5.0, 978_300_760)]);
    let items = rows(&read_table("items"));
    assert_eq!(items[0].to_json(), json!([1, "Toy Story", 1995, ["Animation", "Children's"]]));
    assert_eq!(items[1].to_json(), json!([73, "Misérables, Les", 1995, ["Drama"]]));
    assert_eq!(items[2].to_json(), json!([4, "No Year", null, ["Drama"]]));
    let users = read_table("users");
    assert_eq!(rows(&users)[0].to_json(), json!([1, 1, "F", "K-12 student", "48067"]));
    assert!(users.dead[0].cause.contains("99"));
}

#[test]
fn queries_see_lists_times_and_empty_results() {
    let columns = [
        Column::new("Id", Type::U64),
        Column::new("genres", Type::Text.list()),
        Column::new("at", Type::Timestamp),
    ];
    let data = [
        Row::from([Value::U64(1), Value::list([Value::text("War")]), Value::I64(881_250_949)]),
        Row::from([Value::U64(2), Value::Null, Value::Null]),
    ];
    let batch = sql::rows_to_batch(&columns, &data).unwrap();
    let run = |sql: &str| {
        let batches = sql::query_blocking(vec![("items".to_string(), batch.clone())], sql)?;
        let mut out = Vec::new();
        sql::write_json_lines(&batches, &mut out).unwrap();
        Ok::<String, sql::SqlError>(String::from_utf8(out).unwrap())
    };
    assert_eq!(
        run("SELECT * FROM items ORDER BY Id").unwrap(),
        "{\"Id\":1,\"genres\":[\"War\"],\"at\":\"1997-12-04T15:55:49\"}\n{\"Id\":2,\"genres\":null,\"at\":null}\n"
    );
    assert_eq!(run("SELECT COUNT(*) AS n FROM items WHERE array_has(genres, 'War')").unwrap(), "{\"n\":1}\n");
    assert_eq!(run("SELECT Id FROM items WHERE Id > 5").unwrap(), "");
    assert!(run("DROP TABLE items").is_err());
    assert!(run("SELECT nothing FROM items").is_err());

    let filter = sql::Filter::parse("genres[1] = 'War' AND at > 881250948", &columns).unwrap();
    assert_eq!(filter.judge(&data).unwrap(), [sql::Verdict::Keep, sql::Verdict::Drop]);
    assert!(sql::rows_to_batch(&columns, &[Row::from([Value::text("x")])]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Garbage never panics, never repeats a byte and never loses one, whatever the format.
    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(&b"\",\n\r:|{}1\t"[..])], 0..400),
        cut in 0usize..400,
    ) {
        let folder = Folder::new();
        for format in ["csv", "tsv", "recbole", "movielens", "jsonl", "parquet", "arrow"] {
            let head: &[u8] = match format {
                "csv" => b"user_id,item_id,rating,timestamp\n",
                "tsv" => b"user_id\titem_id\trating\ttimestamp\n",
                "recbole" => b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n",
                _ => b"",
            };
            let whole = [head, &bytes].concat();
            let text = !matches!(format, "parquet" | "arrow");
            let mut source = open(&folder, clicks("f", format));
            folder.write("f", &whole);
            let once = read(&mut *source, &Offsets::default());
            prop_assert!(once.is_ok() || !text);
            let first = folder.write("f", &whole[..(head.len() + cut).min(whole.len())]);
            if text && format != "csv" {
                // In two steps it reads the same as in one.
                let (mut batch, offsets) = read(&mut *source, &Offsets::default()).unwrap();
                fs::write(first, &whole).unwrap();
                let mut offsets = offsets;
                offsets.files.get_mut("f").unwrap().modified_ns = 0;
                let (rest, end) = read(&mut *source, &offsets).unwrap();
                batch.records.extend(rest.records);
                batch.dead.extend(rest.dead);
                let (once, once_end) = once.unwrap();
                prop_assert_eq!(&batch, &once);
                prop_assert_eq!(&end.files["f"].digest, &once_end.files["f"].digest);
            }
        }
    }

    /// A good JSON line is read wherever it stands among garbage lines.
    #[test]
    fn good_lines_survive_garbage(garbage in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..20)) {
        let folder = Folder::new();
        let (mut text, mut good) = (Vec::new(), Vec::new());
        for (at, mut line) in garbage.into_iter().enumerate() {
            line.retain(|byte| *byte != b'\n');
            text.extend(line);
            let at = at as u64;
            text.extend(format!("\n{{\"user_id\":{at},\"item_id\":1,\"rating\":1,\"timestamp\":1}}\n").bytes());
            good.push(click(at, 1, 1.0, 1));
        }
        folder.write("f", &text);
        let (batch, _) = read(&mut *open(&folder, clicks("f", "jsonl")), &Offsets::default()).unwrap();
        prop_assert_eq!(rows(&batch), good);
    }
}
