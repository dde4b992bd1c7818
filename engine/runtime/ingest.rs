//! What is new: sources read on from their offsets, and delta files.
//!
//! Rows are handed on batch by batch, so memory does not grow with the input. Counts are signed;
//! what kernels see is never below zero, and a retraction that came too early is remembered.

use std::{collections::BTreeMap, path::PathBuf};

use coea_operators::row::{Keyed, Row, Value};

use super::{
    RunError,
    driver::{Driver, source_table},
    epoch::InputReport,
    fold::Update,
};
use crate::{
    connectors::{Batch, DeltaFile, Offsets, Record, SourceError},
    state::tables::consolidate,
};

impl Driver<'_> {
    /// Reads what the epoch is to take in: the sources where the state is fresh or no delta is
    /// given, and the deltas.
    ///
    /// # Errors
    /// If a source or a delta cannot be read as a whole.
    pub fn ingest(&mut self) -> Result<(), RunError> {
        let deltas = self.options.deltas.clone();
        if deltas.is_empty() || self.manifest.epoch == 0 {
            for at in 0..self.plan.sources.len() {
                self.read_source(at)?;
            }
        }
        let mut given: BTreeMap<(String, String), PathBuf> = BTreeMap::new();
        for (source, path) in deltas {
            self.read_delta(&source, path, &mut given)?;
        }
        if self.epoch.inputs.iter().any(InputReport::brought) || self.any_over() {
            // An epoch tries again what failed in one before it.
            self.failed.clear();
        }
        Ok(())
    }

    fn read_source(&mut self, at: usize) -> Result<(), RunError> {
        let plan = self.plan.clone();
        let source = &plan.sources[at];
        let failed = |error| RunError::Source { name: source.name.clone(), error };
        let known = self.manifest.sources.get(&source.name);
        let from: Offsets =
            known.and_then(|known| serde_json::from_value(known.offsets.clone()).ok()).unwrap_or_default();
        let mut opened = source.connector.open(&source.name, &plan.folder, &source.table).map_err(failed)?;
        let mut report = InputReport { source: source.name.clone(), ..InputReport::default() };
        let to =
            opened.read_new(&from, &mut |batch| Ok(self.take(at, batch, &mut report)?)).map_err(failed)?;
        if report.brought() {
            self.epoch.inputs.push(report);
        }
        self.epoch.offsets.insert(source.name.clone(), serde_json::to_value(to).unwrap_or_default());
        Ok(())
    }

    fn read_delta(
        &mut self,
        name: &str,
        path: PathBuf,
        given: &mut BTreeMap<(String, String), PathBuf>,
    ) -> Result<(), RunError> {
        let plan = self.plan.clone();
        let Some(at) = plan.sources.iter().position(|source| source.name == name) else {
            let known: Vec<&str> = plan.sources.iter().map(|s| s.name.as_str()).collect();
            let cause = format!("there is no such source to give a delta to; there are {}", known.join(", "));
            return Err(RunError::Node { node: name.to_string(), cause });
        };
        let failed = |error: SourceError| RunError::Source { name: name.to_string(), error };
        let file = DeltaFile::open(&path, name, &plan.sources[at].table).map_err(failed)?;
        let mut report = InputReport { source: name.to_string(), ..InputReport::default() };
        let digest = file.digest().to_string();
        let again = given.insert((name.to_string(), digest.clone()), path.clone()).is_some();
        let epoch = match again {
            true => Some(self.manifest.epoch + 1),
            false => self.applied_in(name, &digest)?,
        };
        if let (Some(epoch), false) = (epoch, self.options.again) {
            let hint = "give --again to apply it once more";
            self.listener.warn(&format!("{} was applied in epoch {epoch}; {hint}", path.display()));
            report.already_applied = Some(epoch);
            self.epoch.inputs.push(report);
            return Ok(());
        }
        file.read(&mut |batch| Ok(self.take(at, batch, &mut report)?)).map_err(failed)?;
        self.epoch.applied.push((name.to_string(), digest));
        self.epoch.inputs.push(report);
        Ok(())
    }

    fn applied_in(&self, source: &str, digest: &str) -> Result<Option<u64>, RunError> {
        let bytes = self.state.snapshot()?.layered("deltas").get(&delta_key(source, digest))?;
        Ok(bytes.and_then(|b| b.try_into().ok()).map(u64::from_be_bytes))
    }

    /// Takes in a batch of a source.
    fn take(&mut self, at: usize, batch: Batch, report: &mut InputReport) -> Result<(), RunError> {
        report.rejected += batch.dead.len() as u64;
        self.epoch.dead.extend(batch.dead);
        let plan = self.plan.clone();
        let source = &plan.sources[at];
        let mut updates: Vec<Update> = Vec::with_capacity(batch.records.len());
        for Record { row, diff } in batch.records {
            match diff > 0 {
                true => report.rows += diff.unsigned_abs(),
                false => report.retractions += diff.unsigned_abs(),
            }
            updates.push((source.keyed(&row), diff));
        }
        match source.events {
            true => Ok(self.workers.events(self.ids[&source.name], updates)?),
            false => self.take_relation(at, updates),
        }
    }

    /// Adds rows to a relation source; the dataflow sees the part of each count above zero.
    fn take_relation(&mut self, at: usize, updates: Vec<Update>) -> Result<(), RunError> {
        let plan = self.plan.clone();
        let source = &plan.sources[at];
        let table = source_table(&source.name);
        let mut seen: Vec<Update> = Vec::new();
        for (keyed, diff) in consolidate(updates) {
            let rows = self.tables.get(&table, &keyed.0)?;
            let before = rows.iter().find(|(row, _)| *row == keyed.1).map_or(0, |(_, count)| *count);
            let after = before + diff;
            let below = after.min(0) - before.min(0);
            if below != 0 {
                self.epoch.unmatched.push((unmatched(self.ids[&source.name], &keyed), -below));
            }
            *self.epoch.net.entry(self.ids[&source.name]).or_default() += diff;
            self.tables.apply(&table, vec![(keyed.clone(), diff)])?;
            let present = after.max(0) - before.max(0);
            if present != 0 {
                seen.push((keyed, present));
            }
        }
        Ok(self.workers.rows(source.leaf, seen)?)
    }
}

/// A row of the unmatched retractions: source number and key → row.
fn unmatched(source: u16, (key, row): &Keyed) -> Keyed {
    (Row::from([Value::U64(source.into())]).concat(key), row.clone())
}

/// The key under which an applied delta file is remembered.
pub(super) fn delta_key(source: &str, digest: &str) -> Vec<u8> {
    format!("{source}\0{digest}").into_bytes()
}
