//! `status --drift`: how far data have drifted from what encoders and codebooks were fitted on.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;

use super::{Failure, output, progress::Bars};
use crate::{
    runtime::driver::{Driver, Options, changed_spec},
    serve::View,
    state::State,
};

/// The drift of a fit.
#[derive(Serialize)]
pub(super) struct DriftStatus {
    artifact: String,
    /// The figure that `refit: { when: drift }` looks at.
    measure: String,
    /// Its value; no drift is 0.
    drift: f64,
    figures: BTreeMap<String, f64>,
}

/// The drift of every fit that tells it and was done, as of the last commit. Reads all they are fitted on.
///
/// # Errors
/// If that cannot be read.
pub(super) fn drift(view: &View, bars: &Bars) -> Result<Vec<DriftStatus>, Failure> {
    if changed_spec(&view.plan, &view.manifest) {
        let message = "error: the pipeline has changed since the last epoch; drift is known after a run";
        return Err(Failure::new(1, message));
    }
    let options = Options {
        workers: 1,
        dry: true,
        resolve: true,
        cycles: true,
        as_committed: true,
        ..Options::default()
    };
    let mut driver = Driver::open(Arc::clone(&view.plan), State::read(&view.dir)?, options, bars)?;
    driver.settle()?;
    let mut all = Vec::new();
    for leaf in driver.drifting() {
        let figures = driver.drift(leaf)?;
        if let Some((measure, drift)) = figures.first().cloned() {
            let figures = figures.into_iter().skip(1).collect();
            all.push(DriftStatus { artifact: view.plan.leaf_name(leaf), measure, drift, figures });
        }
    }
    Ok(all)
}

/// The same for a person.
pub(super) fn shown(all: &[DriftStatus]) -> String {
    let mut rows = vec![["drift of", "measure", "now", "and"].map(str::to_string).to_vec()];
    rows.extend(all.iter().map(|drift| {
        let figures = drift.figures.iter().map(|(name, value)| format!("{name} {value:.3}"));
        let figures = figures.collect::<Vec<_>>().join(", ");
        vec![drift.artifact.clone(), drift.measure.clone(), format!("{:.4}", drift.drift), figures]
    }));
    format!("\n{}", output::columns(&rows))
}
