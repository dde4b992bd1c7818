//! The loop on real clicks: does a judge that it never meets agree that what is served got better?
//!
//! `cargo run --release --example movielens_loop -- FOLDER [--cycles 30] [--arms open,kl,gated,free]`.
//! MovieLens-100k is taken apart: the older half of every history is where pipelines begin, and the newer half
//! of six users in ten comes as so many deltas, each user's in equal portions by time. After each delta a cycle
//! tunes both models of `pipelines/movielens-loop.yaml`: in the arm `kl` held near the version before, in
//! `gated` with bounds on what is put in use, in `anchored` near the first version as well, in `free` near none,
//! and in `open` there are no cycles. The newer clicks of the others teach a third model, the judge, and nothing
//! else.
//! Before each delta what is served is judged by it, and held against the delta: how many of the users who will
//! click a label that is new to them are served one of those, and how many would be if they were served what other
//! groups are, or those with other interests. It goes to `FOLDER/loop.csv`.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Parser;
use coea_engine::{
    plan::Plan,
    runtime::driver::{Driver, Options},
    serve::{
        lookup::{key_text, lookup},
        places::Places,
        view::View,
    },
    state::State,
    testing::Silence,
};

use coea_operators::{row::Row, tuning::placebo::Swapped};

use crate::{
    clicks::{Clicks, Known, popular, relation, write},
    placebo::{Clicker, Lists},
    support::{Arms, figures, path, side_by_side},
};

mod clicks;
mod placebo;
#[path = "../support/mod.rs"]
mod support;

/// What the arm `gated` asks of a version of the novelty model.
const GATE: &str = "{ entropy: { least: 2.0 }, clicked_gain: { least: -0.5 } }";

/// How often, and on what model.
#[derive(Parser)]
struct Args {
    /// A folder that is not there yet.
    folder: PathBuf,
    /// Deltas, each with a cycle.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    cycles: u32,
    #[command(flatten)]
    arms: Arms,
}

/// What came of a delta and its cycle.
struct Step {
    /// What the judge thinks of what is served: its mean win rate.
    judged: f64,
    /// The share of users with a new label among their next clicks who are served one of those.
    hit: f64,
    /// The same of what others are served.
    others: Vec<(String, f64)>,
    /// What the trainers said of their versions.
    figures: Vec<(String, f64)>,
}

impl Step {
    fn told(&self) -> impl Iterator<Item = (&str, f64)> {
        self.others.iter().chain(&self.figures).map(|(name, value)| (name.as_str(), *value))
    }
}

/// One way of running the loop.
struct Arm<'a> {
    name: &'a str,
    clicks: &'a Clicks,
    plan: Arc<Plan>,
    state: PathBuf,
    deltas: PathBuf,
}

impl Arm<'_> {
    fn steps(&self) -> Result<Vec<Step>, Box<dyn Error>> {
        let cycles = self.name != "open";
        let options = Options { workers: 1, resolve: true, cycles, ..Options::default() };
        let mut driver = Driver::open(self.plan.clone(), State::open(&self.state)?, options, &Silence)?;
        driver.run_epoch()?;
        let mut known = Known::of(&View::open(self.plan.clone(), &self.state)?)?;
        known.learn(&self.clicks.events);
        let mut steps = Vec::new();
        for (at, portion) in self.clicks.portions.iter().enumerate() {
            let novel = known.learn(portion);
            let mut step = self.judge(&known, &novel)?;
            driver.begin(vec![("events".to_string(), self.deltas.join(format!("{at}.csv")))]);
            driver.run_epoch()?;
            if cycles {
                step.figures = figures(&driver.cycle()?);
            }
            eprintln!("{} {at}: judged {:.4}, hit {:.4}", self.name, step.judged, step.hit);
            steps.push(step);
        }
        Ok(steps)
    }

    /// What is served, in the eyes of the judge and of the clicks to come.
    fn judge(&self, known: &Known, novel: &BTreeMap<u64, BTreeSet<String>>) -> Result<Step, Box<dyn Error>> {
        let view = View::open(self.plan.clone(), &self.state)?;
        let places = Places::find(&self.plan)?;
        let lists = scored(&view, &places.entries.name)?;
        let verdicts = scored(&view, "verdicts")?;
        let verdict = |key: &String, label: &String| {
            verdicts.get(key)?.iter().find(|(of, _)| of == label).map(|(_, score)| *score)
        };
        let serve = usize::try_from(places.sink.kv.serve)?;
        let users: BTreeSet<u64> = self.clicks.events.iter().map(|(user, ..)| *user).collect();
        let mut others = Swapped::ALL.map(|_| 0.0);
        let (mut judged, mut served, mut hits) = (0.0, 0.0_f64, 0.0);
        for user in users {
            let answer = lookup(&view, &places, &user.to_string())?.answer;
            let scores = answer.categories.iter().filter_map(|c| verdict(&answer.key, &c.category));
            let scores: Vec<f64> = scores.collect();
            if !scores.is_empty() {
                judged += scores.iter().sum::<f64>() / scores.len() as f64;
                served += 1.0;
            }
            let Some(new) = novel.get(&user) else { continue };
            hits += f64::from(u8::from(answer.categories.iter().any(|c| new.contains(&c.category))));
            let clicker = Clicker { key: &answer.key, met: known.met_before(user, new), new };
            for (sum, (which, _)) in others.iter_mut().zip(Swapped::ALL) {
                *sum += clicker.hit(&lists, serve, which);
            }
        }
        let all = novel.len().max(1) as f64;
        let others =
            Swapped::ALL.into_iter().zip(others).map(|((_, name), sum)| (format!("hit_{name}"), sum / all));
        let others = others.collect();
        Ok(Step { judged: judged / served.max(1.0), hit: hits / all, others, figures: vec![] })
    }
}

/// What a node of scored categories has for each key.
fn scored(view: &View, node: &str) -> Result<Lists, Box<dyn Error>> {
    let relation = relation(view, node)?;
    let width = relation.key_width(&view.plan);
    let place = relation.columns(&view.plan).iter().position(|column| column.name == "categories");
    let place = place.ok_or_else(|| format!("`{node}` has no categories"))?;
    let mut lists = Lists::new();
    view.for_each(relation, &mut |row| {
        let pairs = row[place].as_list().unwrap_or_default().iter().filter_map(|pair| {
            let pair = pair.as_list()?;
            Some((pair[0].as_text()?.to_string(), pair[1].as_f64()?))
        });
        let key = Row::new(row.iter().take(width).cloned());
        lists.insert(key_text(&key), pairs.collect());
    })?;
    Ok(lists)
}

/// Files and folders of a folder.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

/// The pipeline of an arm, on the files in a folder.
fn pipeline(args: &Args, name: &str) -> Result<Arc<Plan>, Box<dyn Error>> {
    let source = |source: &str| {
        path(&format!("sources.{source}.with.path"), &args.folder.join(format!("{source}.csv")))
    };
    let sources = ["history", "events", "others"].map(source);
    args.arms.plan(name, "movielens-loop.yaml", &["novelty", "relevance", "judge"], GATE, sources.to_vec())
}

fn table(arms: &[(String, Vec<Step>)], popular: &[f64]) -> String {
    let mut out = "arm,cycle,figure,value\n".to_string();
    for (at, hit) in popular.iter().enumerate() {
        let _ = writeln!(out, "popular,{at},hit,{hit:.6}");
    }
    for (arm, steps) in arms {
        for (at, step) in steps.iter().enumerate() {
            let own = [("judged", step.judged), ("hit", step.hit)];
            for (figure, value) in own.into_iter().chain(step.told()) {
                let _ = writeln!(out, "{arm},{at},{figure},{value:.6}");
            }
        }
    }
    out
}

/// The figures that are shown beside what is served.
const SHOWN: [&str; 10] = [
    "hit_other_groups",
    "hit_other_recents",
    "taught.relevance",
    "taught.entropy",
    "taught.top_share",
    "taught.kl",
    "taught.anchor_kl",
    "taught.optimum",
    "taught.clicked_gain",
    "taught.refused",
];

/// Means of a third of the cycles each.
fn show(name: &str, figure: &str, values: &[f64]) {
    let thirds = values.chunks(values.len().div_ceil(3).max(1));
    let means = thirds.map(|some| format!("{:.4}", some.iter().sum::<f64>() / some.len() as f64));
    println!("{name:>8} {figure:<18} {}", means.collect::<Vec<_>>().join("  "));
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    // What is wrong with the settings is told before anything is written.
    let first = pipeline(&args, "open")?;
    fs::create_dir(&args.folder).map_err(|error| format!("{}: {error}", args.folder.display()))?;
    let clicks = Clicks::read(args.cycles as usize)?;
    let file = |name: &str| args.folder.join(name);
    write(&clicks.history, &file("history.csv"))?;
    write(&clicks.events, &file("events.csv"))?;
    write(&clicks.others, &file("others.csv"))?;
    for (at, portion) in clicks.portions.iter().enumerate() {
        write(portion, &file(&format!("{at}.csv")))?;
    }
    // The first epoch is the same for all: it fits groups, the first novelty model and the judge.
    let begun = file("begun");
    let options = Options { workers: 1, resolve: true, ..Options::default() };
    Driver::open(first.clone(), State::open(&begun)?, options, &Silence)?.run_epoch()?;
    let popular = popular(&clicks, &View::open(first, &begun)?)?;
    let arms = side_by_side(&args.arms.names, &|name| {
        copy(&begun, &file(name))?;
        let (plan, state) = (pipeline(&args, name)?, file(name));
        Arm { name, clicks: &clicks, plan, state, deltas: args.folder.clone() }.steps()
    })?;
    fs::write(file("loop.csv"), table(&arms, &popular))?;
    show("popular", "hit", &popular);
    for (name, steps) in &arms {
        show(name, "judged", &steps.iter().map(|step| step.judged).collect::<Vec<_>>());
        show(name, "hit", &steps.iter().map(|step| step.hit).collect::<Vec<_>>());
        for figure in SHOWN {
            let told = steps.iter().flat_map(Step::told);
            let values: Vec<f64> = told.filter(|(name, _)| *name == figure).map(|(_, value)| value).collect();
            if !values.is_empty() {
                show(name, figure, &values);
            }
        }
    }
    Ok(())
}
