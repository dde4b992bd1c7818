//! What loops have in common: a pipeline with settings, arms side by side, figures of a cycle.

use std::{error::Error, path::Path, sync::Arc, thread::ScopedJoinHandle};

use coea_engine::{
    lower::lower,
    models::RealModels,
    plan::Plan,
    registry::Registry,
    runtime::cycles::{Cycle, Outcome},
    spec,
};

/// The arms there are.
const ARMS: [&str; 5] = ["open", "kl", "gated", "anchored", "free"];

/// What is compared, and on what model.
#[derive(clap::Args)]
pub struct Arms {
    /// The language model: a name, or a folder.
    #[arg(long, default_value = "smollm2-135m-instruct")]
    base: String,
    /// Which arms are run: without cycles; held near the version before; the same, and a version that proposes
    /// few labels, or finds new clicks less probable, is refused; held near the first version as well; near
    /// none.
    #[arg(long = "arms", value_delimiter = ',', default_value = "open,kl,gated,free", value_parser = ARMS)]
    pub names: Vec<String>,
    /// Further settings of the pipeline, as `path=value`.
    #[arg(long)]
    set: Vec<String>,
}

impl Arms {
    /// The pipeline of an arm: with its own settings, and those of the command line.
    pub fn plan(
        &self,
        name: &str,
        pipeline: &str,
        models: &[&str],
        gate: &str,
        set: Vec<String>,
    ) -> Result<Arc<Plan>, Box<dyn Error>> {
        let bases = models.iter().map(|model| format!("models.{model}.base={}", self.base));
        let own = match name {
            "free" => Some("params.kl=0".to_string()),
            "gated" => Some(format!("params.gate={gate}")),
            "anchored" => Some("params.anchor_kl=0.1".to_string()),
            _ => None,
        };
        let set: Vec<String> =
            set.into_iter().chain(bases).chain(own).chain(self.set.iter().cloned()).collect();
        plan(pipeline, &set)
    }
}

/// A setting that is a path, from where the program runs and not from the pipeline's folder.
pub fn path(name: &str, path: &Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    format!("{name}={}", serde_json::to_string(&path.display().to_string()).unwrap_or_default())
}

/// A pipeline of this repository, with settings.
fn plan(name: &str, set: &[String]) -> Result<Arc<Plan>, Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines");
    let spec = spec::load(&folder.join(name), set, &|name| std::env::var(name).ok());
    let spec = spec.map_err(|e| e.render(false))?;
    let plan = lower(&spec, &folder, &Registry::built_in(), &RealModels::default());
    Ok(Arc::new(plan.map_err(|e| e.render(false))?))
}

/// What the trainers said of their versions, and whether these were refused: `node.figure` and value.
pub fn figures(cycle: &Cycle) -> Vec<(String, f64)> {
    let made = cycle.made.iter().flat_map(|made| {
        let refused = match (&made.model, &made.outcome) {
            (Some(_), Outcome::Used) => Some(0.0),
            (Some(_), Outcome::Refused(_)) => Some(1.0),
            _ => None,
        };
        let refused = refused.map(|refused| ("refused".to_string(), refused));
        let told = made.figures.iter().cloned().chain(refused);
        told.map(|(name, value)| (format!("{}.{name}", made.node), value))
    });
    made.collect()
}

/// Runs arms by name, each in a thread of its own.
pub fn side_by_side<T: Send>(
    names: &[String],
    run: &(dyn Fn(&str) -> Result<T, Box<dyn Error>> + Sync),
) -> Result<Vec<(String, T)>, String> {
    let one = |name: &str| run(name).map_err(|error| error.to_string());
    let ended = |arm: ScopedJoinHandle<'_, Result<T, String>>| {
        arm.join().unwrap_or_else(|_| Err("an arm panicked".to_string()))
    };
    std::thread::scope(|scope| {
        let arms: Vec<_> = names.iter().map(|name| (name, scope.spawn(|| one(name)))).collect();
        arms.into_iter().map(|(name, arm)| Ok((name.clone(), ended(arm)?))).collect()
    })
}
