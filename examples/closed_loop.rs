//! A loop closed on a planted world: does tuning on its own feedback help, and what does divergence cost?
//!
//! `cargo run --release --example closed_loop -- FOLDER [--cycles 30] [--base MODEL] [--arms open,kl,gated,free]`.
//! Every day each user is served three categories, answers, and the answers are a delta of the pipeline
//! `pipelines/world-loop.yaml`. In the arm `open` that is all; in the others a cycle follows, which tunes the
//! relevance model on the answers and the novelty model on its verdicts: in `kl` held near the version before,
//! in `gated` with bounds on what is put in use, in `anchored` near the first version as well, in `free` near
//! none. What a day's lists lost against the best ones is known, because the world is planted: it goes to `FOLDER/regret.csv`, and to `FOLDER/regret.svg` as curves. Beside it stands how far the planted
//! tastes were recovered: how much of the best lists is served, and whether groups get most what they like most.

use std::{
    collections::BTreeMap,
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
    serve::{lookup::lookup, places::Places, view::View},
    state::State,
    testing::Silence,
    world::{Category, Judgement, Parameters, Truth, User, generate},
};

use crate::support::{Arms, figures, path, side_by_side};

mod support;

/// What the arm `gated` asks of a version of the novelty model: more than half of an even choice's entropy.
const GATE: &str = "{ entropy: { least: 1.4 }, clicked_gain: { least: -0.5 } }";

/// What to close a loop on, and how often.
#[derive(Parser)]
struct Args {
    /// A folder that is not there yet.
    folder: PathBuf,
    /// Days, each with a cycle.
    #[arg(long, default_value_t = 30)]
    cycles: u32,
    /// Users of the world.
    #[arg(long, default_value_t = 240)]
    users: u32,
    #[command(flatten)]
    arms: Arms,
}

/// What a day cost, and how far the models went for it.
#[derive(Default)]
struct Day {
    /// Expected clicks lost per user.
    regret: f64,
    /// Expected clicks per user.
    clicks: f64,
    /// Share of the best lists that was served.
    found: f64,
    /// How well the order in which categories are served to a group's users most is that of its taste:
    /// Spearman's correlation, mean over the groups.
    taste: f64,
    /// What the trainers of the cycle said of their versions.
    figures: Vec<(String, f64)>,
}

/// A day, a user, and what came of the user's list.
type Served = (u32, (User, Judgement));

/// One way of running the loop.
struct Arm<'a> {
    name: &'a str,
    truth: &'a Truth,
    plan: Arc<Plan>,
    folder: PathBuf,
    state: PathBuf,
}

impl Arm<'_> {
    fn days(&self, count: u32) -> Result<Vec<Day>, Box<dyn Error>> {
        let cycles = self.name != "open";
        let options = Options { workers: 1, resolve: true, cycles, ..Options::default() };
        let mut driver = Driver::open(self.plan.clone(), State::open(&self.state)?, options, &Silence)?;
        driver.run_epoch()?;
        let mut days = Vec::new();
        for n in 0..count {
            let day = self.truth.parameters().days + n;
            let served = self.serve(day)?;
            let mut told = Day::default();
            for (_, (_, judged)) in &served {
                told.regret += judged.regret() / served.len() as f64;
                told.clicks += judged.expected / served.len() as f64;
            }
            told.found = found(self.truth, day, &served);
            told.taste = taste(self.truth, &served);
            let delta = self.folder.join(format!("{}-{day}.csv", self.name));
            self.truth.write_answers(&delta, &served)?;
            driver.begin(["events", "shown"].map(|source| (source.to_string(), delta.clone())).to_vec());
            driver.run_epoch()?;
            if cycles {
                told.figures = figures(&driver.cycle()?);
            }
            let Day { regret, clicks, found, taste, .. } = &told;
            let best = regret + clicks;
            eprintln!(
                "{} day {n}: {regret:.4} lost of {best:.4}, found {found:.3}, taste {taste:.3}",
                self.name
            );
            days.push(told);
        }
        Ok(days)
    }

    /// What every user is served on a day, and answers.
    fn serve(&self, day: u32) -> Result<Vec<Served>, Box<dyn Error>> {
        let view = View::open(self.plan.clone(), &self.state)?;
        let places = Places::find(&self.plan)?;
        let mut served = Vec::new();
        for user in self.truth.users() {
            let found = lookup(&view, &places, &user.id().to_string())?;
            let named = found.answer.categories.iter().filter_map(|c| self.truth.category(&c.category));
            let categories: Vec<Category> = named.collect();
            served.push((day, (user, self.truth.judge(user, day, &categories, |_| true))));
        }
        Ok(served)
    }
}

/// The share of users' best lists that was served.
fn found(truth: &Truth, day: u32, served: &[Served]) -> f64 {
    let (mut met, mut all) = (0, 0);
    for (_, (user, judged)) in served {
        let best = truth.best(*user, day, judged.answers.len(), |_| true);
        met += best.iter().filter(|(c, _)| judged.answers.iter().any(|a| a.category == *c)).count();
        all += best.len();
    }
    met as f64 / all.max(1) as f64
}

/// How far what groups are served has the order of what they like.
fn taste(truth: &Truth, served: &[Served]) -> f64 {
    let mut shares: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for (_, (user, judged)) in served {
        let counts =
            shares.entry(truth.group(*user)).or_insert_with(|| vec![0.0; truth.categories().count()]);
        judged.answers.iter().for_each(|answer| counts[answer.category.index()] += 1.0);
    }
    let each = shares.iter().filter_map(|(group, counts)| Some(spearman(counts, truth.taste(*group)?)));
    let each: Vec<f64> = each.collect();
    each.iter().sum::<f64>() / each.len().max(1) as f64
}

/// The correlation of ranks.
fn spearman(a: &[f64], b: &[f64]) -> f64 {
    // Equal values share the mean of their ranks.
    let ranks = |of: &[f64]| -> Vec<f64> {
        let rank = |x: &f64| {
            let below = of.iter().filter(|y| *y < x).count();
            let equal = of.iter().filter(|y| y.total_cmp(x).is_eq()).count();
            below as f64 + (equal as f64 - of.len() as f64) / 2.0
        };
        of.iter().map(rank).collect()
    };
    let (a, b) = (ranks(a), ranks(b));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt().max(f64::MIN_POSITIVE)
}

fn table(arms: &[(String, Vec<Day>)]) -> String {
    let mut out = "arm,day,regret,clicks,found,taste,figure,value\n".to_string();
    for (arm, days) in arms {
        for (at, day) in days.iter().enumerate() {
            let Day { regret, clicks, found, taste, .. } = day;
            let _ = writeln!(out, "{arm},{at},{regret:.6},{clicks:.6},{found:.6},{taste:.6},,");
            for (figure, value) in &day.figures {
                let _ = writeln!(out, "{arm},{at},,,,,{figure},{value:.6}");
            }
        }
    }
    out
}

/// The curves of regret, day by day.
fn curves(arms: &[(String, Vec<Day>)]) -> String {
    const COLOURS: [&str; 5] = ["#777777", "#1f77b4", "#d62728", "#2ca02c", "#9467bd"];
    let most = arms.iter().flat_map(|(_, days)| days).map(|day| day.regret).fold(0.0, f64::max);
    let last = arms.iter().map(|(_, days)| days.len()).max().unwrap_or(1).max(2) - 1;
    let x = |at: usize| 60.0 + 640.0 * at as f64 / last as f64;
    let y = |regret: f64| 360.0 - 320.0 * regret / most.max(f64::MIN_POSITIVE);
    let mut out = String::from(
        "<svg xmlns='http://www.w3.org/2000/svg' width='820' height='420' font-family='sans-serif' font-size='13'>\n\
         <rect width='820' height='420' fill='white'/>\n\
         <text x='60' y='25'>Expected clicks lost per user and day, against the best lists</text>\n\
         <path d='M60 40V360H700' fill='none' stroke='black'/>\n",
    );
    let _ =
        writeln!(out, "<text x='20' y='364'>0</text><text x='10' y='{:.0}'>{most:.2}</text>", y(most) + 4.0);
    let _ = writeln!(out, "<text x='56' y='380'>0</text><text x='690' y='380'>{last} days</text>");
    for ((arm, days), colour) in arms.iter().zip(COLOURS) {
        let points: Vec<String> =
            days.iter().enumerate().map(|(at, day)| format!("{:.1},{:.1}", x(at), y(day.regret))).collect();
        let _ = writeln!(
            out,
            "<polyline points='{}' fill='none' stroke='{colour}' stroke-width='2'/>",
            points.join(" ")
        );
        if let Some(day) = days.last() {
            let _ =
                writeln!(out, "<text x='706' y='{:.1}' fill='{colour}'>{arm}</text>", y(day.regret) + 4.0);
        }
    }
    out + "</svg>\n"
}

/// Runs the arm of a name.
fn arm(args: &Args, truth: &Truth, world: &Path, name: &str) -> Result<Vec<Day>, Box<dyn Error>> {
    let set = vec![
        path("sources.events.with.path", &world.join("events/*.parquet")),
        path("sources.shown.with.path", &world.join("events/*.parquet")),
        path("sources.items.with.path", &world.join("items.parquet")),
        path("sources.users.with.path", &world.join("users.parquet")),
    ];
    let plan = args.arms.plan(name, "world-loop.yaml", &["novelty", "relevance"], GATE, set)?;
    let (folder, state) = (args.folder.clone(), args.folder.join(name));
    Arm { name, truth, plan, folder, state }.days(args.cycles)
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let parameters = Parameters {
        users: args.users,
        items: 400,
        categories: 16,
        groups: 6,
        interactions: u64::from(args.users) * 200,
        days: 20,
        ..Parameters::default()
    };
    let truth = Truth::new(parameters)?;
    let world = args.folder.join("world");
    generate(&truth, &world, &|_, _| ())?;
    // Arms have nothing in common but the world.
    let arms = side_by_side(&args.arms.names, &|name| arm(&args, &truth, &world, name))?;
    fs::write(args.folder.join("regret.csv"), table(&arms))?;
    fs::write(args.folder.join("regret.svg"), curves(&arms))?;
    for (name, days) in &arms {
        let (first, last) = (&days[..days.len().min(3)], &days[days.len().saturating_sub(3)..]);
        let told = |what: &str, of: fn(&Day) -> f64| {
            let mean = |days: &[Day]| days.iter().map(of).sum::<f64>() / days.len().max(1) as f64;
            println!("{name:>8}: {what} {:.4} at first, {:.4} at last", mean(first), mean(last));
        };
        told("lost per user and day", |day| day.regret);
        told("share of the best lists that was served", |day| day.found);
        told("order of a group's taste", |day| day.taste);
    }
    Ok(())
}
