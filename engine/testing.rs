//! What tests and benches of the engine share: a language model that costs nothing, and a bench to
//! run small pipelines on.
//!
//! Reachable from Rust only: no flag, file or variable selects the stand-in, so nobody can mistake
//! its answers for a model's.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use coea_operators::{
    language_model::{Answered, LanguageModel, Writing, Written},
    shape::{CallError, Cost, FitKernel, Shape},
};

use crate::{
    lower::lower,
    models::ModelProvider,
    plan::Plan,
    registry::Registry,
    runtime::{
        RunError,
        driver::{Driver, Listener, Options},
        report::Report,
    },
    spec,
    state::{State, StateError},
};

/// Gives stand-ins for every base, and counts what they are asked.
#[derive(Clone, Default)]
pub struct StandIn {
    calls: Arc<AtomicU64>,
    failing: Arc<Mutex<Option<String>>>,
    pace: Arc<AtomicU64>,
}

impl StandIn {
    /// Prompts scored so far, by all models together.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// From now on prompts that contain `marker` fail; with none, all are answered.
    pub fn fail_on(&self, marker: Option<&str>) {
        *self.failing.lock().unwrap_or_else(PoisonError::into_inner) = marker.map(str::to_string);
    }

    /// From now on a prompt takes this long, so that a process can be met at its calls.
    pub fn take(&self, per_prompt: Duration) {
        self.pace.store(u64::try_from(per_prompt.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl ModelProvider for StandIn {
    fn language(&self, base: &str) -> Result<Arc<dyn LanguageModel>, String> {
        Ok(Arc::new(StandInModel { base: base.to_string(), of: self.clone() }))
    }
}

/// Answers from a hash of prompt and label, so that equal questions have equal answers.
struct StandInModel {
    base: String,
    of: StandIn,
}

impl StandInModel {
    /// A log-probability from -1 to -12.
    fn logprob(&self, prompt: &str, label: &str) -> f32 {
        let mut hasher = blake3::Hasher::new();
        for part in [self.base.as_str(), prompt, label] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        let bytes = hasher.finalize();
        let draw = u16::from_le_bytes([bytes.as_bytes()[0], bytes.as_bytes()[1]]);
        -1.0 - 11.0 * f32::from(draw) / f32::from(u16::MAX)
    }

    /// Answers prompts one by one, at the pace that was asked for.
    fn answer<T>(
        &self,
        prompts: &[String],
        answered: &mut Answered<'_, T>,
        answer: impl Fn(&str) -> T,
    ) -> Result<Cost, CallError> {
        let pace = Duration::from_micros(self.of.pace.load(Ordering::Relaxed));
        let failing = self.of.failing.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (at, prompt) in prompts.iter().enumerate() {
            std::thread::sleep(pace);
            self.of.calls.fetch_add(1, Ordering::Relaxed);
            let answer = match &failing {
                Some(marker) if prompt.contains(marker) => Err(format!("the prompt contains {marker}")),
                _ => Ok(answer(prompt)),
            };
            if answered(at, answer).is_break() {
                break;
            }
        }
        self.price(prompts)
    }
}

impl LanguageModel for StandInModel {
    fn digest(&self) -> String {
        format!("stand-in/1 {}", self.base)
    }

    fn score(
        &self,
        labels: &[String],
        prompts: &[String],
        answered: &mut Answered<'_, Vec<f32>>,
    ) -> Result<Cost, CallError> {
        self.answer(prompts, answered, |prompt| {
            labels.iter().map(|label| self.logprob(prompt, label)).collect()
        })
    }

    fn write(
        &self,
        how: &Writing,
        prompts: &[String],
        answered: &mut Answered<'_, Written>,
    ) -> Result<Cost, CallError> {
        self.answer(prompts, answered, |prompt| {
            let text = format!("text {:.3} under seed {}", self.logprob(prompt, "text"), how.seed);
            Written { text, tokens: 4, finished: true }
        })
    }

    fn price(&self, prompts: &[String]) -> Result<Cost, CallError> {
        let bytes = prompts.iter().map(|prompt| prompt.len() as u64).sum();
        Ok(Cost { prompt_tokens: bytes, ..Cost::default() })
    }
}

/// Listens to nothing.
pub struct Silence;

impl Listener for Silence {
    fn progress(&self, _what: &str, _done: u64, _total: u64, _note: &str) {}
    fn warn(&self, _message: &str) {}
}

/// A folder with a pipeline `pipeline.yaml`, its files, and states.
pub struct Bench {
    dir: PathBuf,
    /// Removes the folder in the end, unless another bench made it.
    _owned: Option<tempfile::TempDir>,
    fits: Arc<AtomicU64>,
    /// The models of its pipeline.
    pub models: StandIn,
    /// The pipeline.
    pub plan: Arc<Plan>,
}

impl Bench {
    /// Writes files by their relative paths, `pipeline.yaml` among them, and lowers the pipeline.
    ///
    /// # Errors
    /// What is wrong with a file or the pipeline, as a user would read it.
    pub fn new(files: &[(&str, &str)]) -> Result<Self, String> {
        let owned = tempfile::tempdir().map_err(|e| e.to_string())?;
        for (path, text) in files {
            write(&owned.path().join(path), text).map_err(|e| format!("{path}: {e}"))?;
        }
        let mut bench = Bench::at(owned.path())?;
        bench._owned = Some(owned);
        Ok(bench)
    }

    /// The same bench with other models than stand-ins.
    ///
    /// # Errors
    /// What is wrong with the pipeline, as a user would read it.
    pub fn with_models(mut self, models: &dyn ModelProvider) -> Result<Self, String> {
        self.plan = Arc::new(lowered(&self.dir, models, &self.fits)?);
        Ok(self)
    }

    /// The bench that another process made in a folder.
    ///
    /// # Errors
    /// What is wrong with the pipeline, as a user would read it.
    pub fn at(folder: &Path) -> Result<Self, String> {
        let (models, fits) = (StandIn::default(), Arc::default());
        let plan = Arc::new(lowered(folder, &models, &fits)?);
        Ok(Bench { dir: folder.to_path_buf(), _owned: None, fits, models, plan })
    }

    /// Fits begun so far, by all epochs together.
    pub fn fits(&self) -> u64 {
        self.fits.load(Ordering::Relaxed)
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Writes another pipeline and lowers it; states and sources stay.
    ///
    /// # Errors
    /// What is wrong with it, as a user would read it.
    pub fn rewrite(&mut self, pipeline: &str) -> Result<(), String> {
        write(&self.path("pipeline.yaml"), pipeline).map_err(|e| e.to_string())?;
        self.plan = Arc::new(lowered(&self.dir, &self.models, &self.fits)?);
        Ok(())
    }

    /// Writes delta files, source → CSV text, and gives the options that apply them on one worker.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn deltas(&self, deltas: &[(&str, &str)]) -> std::io::Result<Options> {
        let mut given = Vec::new();
        for (at, (source, text)) in deltas.iter().enumerate() {
            let path = self.path(&format!("delta-{at}-{source}.csv"));
            write(&path, text)?;
            given.push((source.to_string(), path));
        }
        Ok(Options { workers: 1, deltas: given, again: true, resolve: true, ..Options::default() })
    }

    /// Runs, or with `dry` foresees, one epoch on the state of a name.
    ///
    /// # Errors
    /// What kept the epoch from coming about.
    pub fn epoch(&self, state: &str, options: Options) -> Result<Report, RunError> {
        let dir = self.path(state);
        let state = if options.dry { State::read(&dir)? } else { State::open(&dir)? };
        let dry = options.dry;
        let mut driver = Driver::open(self.plan.clone(), state, options, &Silence)?;
        driver.ingest()?;
        let work = driver.has_work();
        driver.settle()?;
        if dry {
            driver.price_open()?;
        }
        let changes = driver.changes()?;
        let mut report = driver.report(&changes);
        if work && !dry {
            report.epoch = driver.commit(&changes)?;
        }
        Ok(report)
    }

    /// Runs a program in the folder: its exit code (−1 if a signal ended it), what it wrote to standard
    /// output, and what to standard error.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn command(&self, program: &str, args: &[&str]) -> std::io::Result<(i32, String, String)> {
        let output = Command::new(program).args(args).current_dir(&self.dir).output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr)))
    }

    /// A driver on the state of a name that stays open.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub fn driver(&self, state: &str, options: Options) -> Result<Driver<'static>, RunError> {
        Driver::open(self.plan.clone(), State::open(&self.path(state))?, options, &Silence)
    }

    /// The state of a name, to read.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn state(&self, name: &str) -> Result<State, StateError> {
        State::read(&self.path(name))
    }

    /// Every table of a state, byte by byte.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn dump(&self, state: &str) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, StateError> {
        let mut all = BTreeMap::new();
        self.state(state)?.snapshot()?.layered("tables").scan(&[], &mut |key, bytes| {
            all.insert(key.to_vec(), bytes.to_vec());
            Ok(true)
        })?;
        Ok(all)
    }
}

fn write(path: &Path, text: &str) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
    std::fs::write(path, text)
}

/// The folder's pipeline; every fit of it is counted as it begins.
fn lowered(folder: &Path, models: &dyn ModelProvider, fits: &Arc<AtomicU64>) -> Result<Plan, String> {
    let spec = spec::load(&folder.join("pipeline.yaml"), &[], &|_| None).map_err(|e| e.render(false))?;
    let mut plan = lower(&spec, folder, &Registry::built_in(), models).map_err(|e| e.render(false))?;
    for leaf in &mut plan.leaves {
        if let Shape::Fit { kernel, .. } = &mut leaf.shape {
            *kernel = counted(kernel.clone(), fits.clone());
        }
    }
    Ok(plan)
}

fn counted(kernel: FitKernel, fits: Arc<AtomicU64>) -> FitKernel {
    Arc::new(move |inputs, artifacts, progress| {
        fits.fetch_add(1, Ordering::Relaxed);
        kernel(inputs, artifacts, progress)
    })
}
