//! Between the readers and the receiver: rows are gathered to batches, and the condition is
//! evaluated on a batch at a time, because SQL over columns is cheap and over single rows is not.

use coea_operators::row::Row;

use super::{
    BATCH_ROWS, Batch, DeadLetter, Record, Sink, SourceError,
    sql::{Filter, Verdict},
};

/// Most bytes of a record that a dead letter keeps.
pub(super) const MAX_RAW: usize = 1024;

/// Where a record stood.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub line: u64,
    pub byte: u64,
}

/// Gathers what a source reads.
pub(super) struct Collector<'a, 's> {
    source: &'a str,
    file: String,
    filter: Option<&'a Filter>,
    sink: &'a mut Sink<'s>,
    records: Vec<Record>,
    places: Vec<Place>,
    dead: Vec<DeadLetter>,
}

impl<'a, 's> Collector<'a, 's> {
    pub fn new(source: &'a str, filter: Option<&'a Filter>, sink: &'a mut Sink<'s>) -> Self {
        let (records, places, dead) = (Vec::new(), Vec::new(), Vec::new());
        Collector { source, file: String::new(), filter, sink, records, places, dead }
    }

    /// From here on, records come from `file`.
    pub fn start_file(&mut self, file: &str) -> Result<(), SourceError> {
        self.flush()?;
        self.file = file.to_string();
        Ok(())
    }

    pub fn row(&mut self, row: Row, diff: i64, place: Place) -> Result<(), SourceError> {
        self.records.push(Record { row, diff });
        self.places.push(place);
        self.flush_if_full()
    }

    pub fn dead(&mut self, raw: &[u8], cause: impl Into<String>, place: Place) -> Result<(), SourceError> {
        let letter = self.letter(raw, cause.into(), place);
        self.dead.push(letter);
        self.flush_if_full()
    }

    fn letter(&self, raw: &[u8], cause: String, place: Place) -> DeadLetter {
        let mut raw = String::from_utf8_lossy(&raw[..raw.len().min(MAX_RAW)]).into_owned();
        // Replacement characters are longer than what they replace.
        raw.truncate(raw.floor_char_boundary(MAX_RAW));
        let Place { line, byte } = place;
        DeadLetter { source: self.source.to_string(), file: self.file.clone(), line, byte, cause, raw }
    }

    fn flush_if_full(&mut self) -> Result<(), SourceError> {
        if self.records.len() < BATCH_ROWS && self.dead.len() < BATCH_ROWS {
            return Ok(());
        }
        self.flush()
    }

    /// Hands over what is gathered.
    pub fn flush(&mut self) -> Result<(), SourceError> {
        if self.records.is_empty() && self.dead.is_empty() {
            return Ok(());
        }
        let records = std::mem::take(&mut self.records);
        let places = std::mem::take(&mut self.places);
        let mut batch = Batch { dead: std::mem::take(&mut self.dead), ..Batch::default() };
        match self.filter {
            None => batch.records = records,
            Some(filter) => self.filter(filter, records, &places, &mut batch)?,
        }
        (self.sink)(batch).map_err(SourceError::Sink)
    }

    fn filter(
        &self,
        filter: &Filter,
        records: Vec<Record>,
        places: &[Place],
        batch: &mut Batch,
    ) -> Result<(), SourceError> {
        let verdicts = filter.judge(records.iter().map(|record| &record.row))?;
        for ((record, verdict), place) in records.into_iter().zip(verdicts).zip(places) {
            match verdict {
                Verdict::Keep => batch.records.push(record),
                Verdict::Drop => batch.filtered += 1,
                Verdict::Failed(cause) => {
                    let raw = record.row.to_json().to_string();
                    batch.dead.push(self.letter(raw.as_bytes(), format!("where: {cause}"), *place));
                }
            }
        }
        batch.dead.sort_by_key(|letter| letter.byte);
        Ok(())
    }
}
