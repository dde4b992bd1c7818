//! A loop that is closed on a planted world, and what each way of recommending costs.
//!
//! `cargo run --release --example planted_world`. For thirty days after the log, three recommenders name
//! three categories to each user, hear what was clicked, and are told nothing else. Regret is known,
//! so they can be compared without an experiment on anybody.

use std::{convert::Infallible, error::Error};

use coea_engine::world::{Category, Parameters, Today, Truth, User};

const SERVED: usize = 3;
const DAYS: u32 = 30;

/// Clicks and times shown, category by category, for each of some parts of the users.
struct Rates(Vec<Vec<(f64, f64)>>);

impl Rates {
    fn new(truth: &Truth, parts: usize) -> Self {
        // One click in six, before anything is known.
        Rates(vec![vec![(1.0, 6.0); truth.categories().count()]; parts])
    }

    fn learn(&mut self, part: usize, category: Category, clicked: bool) {
        let (clicks, shown) = &mut self.0[part][category.index()];
        *clicks += f64::from(u8::from(clicked));
        *shown += 1.0;
    }

    /// The categories that were clicked most of the times they were shown.
    fn best(&self, truth: &Truth, part: usize) -> Vec<Category> {
        let rate = |category: &Category| {
            let (clicks, shown) = self.0[part][category.index()];
            clicks / shown
        };
        let mut all: Vec<Category> = truth.categories().collect();
        all.sort_by(|a, b| rate(b).total_cmp(&rate(a)));
        all.truncate(SERVED);
        all
    }
}

/// Learns from the log, then recommends, listens and learns on; gives the regret per user of each day.
fn regret(truth: &Truth, parts: usize, part: impl Fn(User) -> usize) -> Vec<f64> {
    let mut rates = Rates::new(truth, parts);
    for day in 0..truth.parameters().days {
        let mut today = Today::new(truth, day);
        for user in truth.users() {
            let Ok(()) = today.of_user(user, &mut |row| {
                let shown_for = truth.categories_of(row.item).next();
                shown_for.into_iter().for_each(|category| rates.learn(part(user), category, row.clicked));
                Ok::<(), Infallible>(())
            });
        }
    }
    let served = |day: u32| {
        let mut regret = 0.0;
        let lists: Vec<Vec<Category>> = (0..parts).map(|part| rates.best(truth, part)).collect();
        for user in truth.users() {
            let judged = truth.judge(user, day, &lists[part(user)], |_| true);
            regret += judged.regret();
            judged.answers.iter().for_each(|a| rates.learn(part(user), a.category, a.clicked));
        }
        regret / f64::from(truth.parameters().users)
    };
    (truth.parameters().days..truth.parameters().days + DAYS).map(served).collect()
}

fn main() -> Result<(), Box<dyn Error>> {
    let parameters = Parameters { users: 300, interactions: 60_000, ..Parameters::default() };
    let truth = Truth::new(parameters)?;
    println!("clicks lost per user and day, of {SERVED} categories recommended");
    println!("{:>20}  first day  last day", "");
    for (name, days) in [
        ("the same for all", regret(&truth, 1, |_| 0)),
        ("by planted group", regret(&truth, 8, |user| truth.group(user))),
        ("by user", regret(&truth, 300, |user| user.id() as usize - 1)),
    ] {
        println!("{name:>20}  {:9.3}  {:8.3}", days[0], days[days.len() - 1]);
    }
    Ok(())
}
