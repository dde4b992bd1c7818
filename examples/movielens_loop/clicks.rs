//! MovieLens' clicks, taken apart, and what users have met of labels.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fmt::Write,
    fs,
    path::Path,
};

use coea_engine::{
    fetch,
    serve::{relations::Relation, view::View},
};
use coea_operators::row::Value;

/// User, item and time of a click.
pub type Click = (u64, u64, i64);

/// The clicks of MovieLens, taken apart.
pub struct Clicks {
    /// The older halves of all histories.
    pub history: Vec<Click>,
    /// Those of the users whom the loop serves.
    pub events: Vec<Click>,
    /// All clicks of the others.
    pub others: Vec<Click>,
    /// The newer halves of those who are served, in equal portions of each user's.
    pub portions: Vec<Vec<Click>>,
}

impl Clicks {
    /// Takes the data set apart into so many portions.
    pub fn read(cycles: usize) -> Result<Self, Box<dyn Error>> {
        let folder = fetch::dataset("movielens-100k", None)?.folder;
        let mut users: BTreeMap<u64, Vec<(i64, u64)>> = BTreeMap::new();
        for line in fs::read_to_string(folder.join("ml-100k.inter"))?.lines().skip(1) {
            let cells: Vec<&str> = line.split('\t').collect();
            let &[user, item, _, time] = cells.as_slice() else {
                return Err(format!("`{line}` is no click").into());
            };
            users.entry(user.parse()?).or_default().push((time.parse::<f64>()? as i64, item.parse()?));
        }
        let mut clicks =
            Clicks { history: vec![], events: vec![], others: vec![], portions: vec![vec![]; cycles] };
        for (user, mut own) in users {
            own.sort_unstable();
            let own: Vec<Click> = own.into_iter().map(|(time, item)| (user, item, time)).collect();
            let (older, newer) = own.split_at(own.len() / 2);
            clicks.history.extend(older);
            if user % 5 < 2 {
                clicks.others.extend(own);
                continue;
            }
            clicks.events.extend(older);
            let portion = |at: usize| at * cycles / newer.len();
            newer.iter().enumerate().for_each(|(at, click)| clicks.portions[portion(at)].push(*click));
        }
        Ok(clicks)
    }
}

/// Writes clicks as CSV.
pub fn write(clicks: &[Click], to: &Path) -> std::io::Result<()> {
    let mut out = "user_id,item_id,timestamp\n".to_string();
    for (user, item, time) in clicks {
        let _ = writeln!(out, "{user},{item},{time}");
    }
    fs::write(to, out)
}

/// What users click.
#[derive(Clone)]
pub struct Known {
    /// The labels of an item.
    labels: BTreeMap<u64, Vec<String>>,
    /// The labels that each user has met.
    met: BTreeMap<u64, BTreeSet<String>>,
}

impl Known {
    /// Item and labels, from the table of the pipeline.
    pub fn of(view: &View) -> Result<Self, Box<dyn Error>> {
        let mut labels = BTreeMap::new();
        view.for_each(relation(view, "label")?, &mut |row| {
            let names = row[1].as_list().unwrap_or_default().iter().filter_map(Value::as_text);
            labels.insert(row[0].as_u64().unwrap_or_default(), names.map(str::to_string).collect());
        })?;
        Ok(Self { labels, met: BTreeMap::new() })
    }

    fn labels(&self, click: &Click) -> &[String] {
        self.labels.get(&click.1).map(Vec::as_slice).unwrap_or_default()
    }

    /// The labels of clicks by user.
    fn by_user(&self, clicks: &[Click]) -> BTreeMap<u64, BTreeSet<String>> {
        let mut users: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
        for click in clicks {
            users.entry(click.0).or_default().extend(self.labels(click).iter().cloned());
        }
        users
    }

    /// Takes note of clicks; gives the labels among them that are new to their users.
    pub fn learn(&mut self, clicks: &[Click]) -> BTreeMap<u64, BTreeSet<String>> {
        let mut novel = BTreeMap::new();
        for (user, labels) in self.by_user(clicks) {
            let met = self.met.entry(user).or_default();
            let new: BTreeSet<String> = labels.difference(met).cloned().collect();
            met.extend(labels);
            if !new.is_empty() {
                novel.insert(user, new);
            }
        }
        novel
    }

    /// The labels that a user had met before these.
    pub fn met_before(&self, user: u64, new: &BTreeSet<String>) -> BTreeSet<&str> {
        let met = self.met.get(&user).into_iter().flatten();
        met.filter(|label| !new.contains(*label)).map(String::as_str).collect()
    }
}

/// A table of the pipeline.
pub fn relation(view: &View, name: &str) -> Result<Relation, String> {
    Relation::find(&view.plan, name).ok_or_else(|| format!("the pipeline has no `{name}`"))
}

/// What serving the labels that are clicked most, and new to the user, would have met.
pub fn popular(clicks: &Clicks, view: &View) -> Result<Vec<f64>, Box<dyn Error>> {
    let mut known = Known::of(view)?;
    let mut counts: BTreeMap<&String, u64> = BTreeMap::new();
    let labels = known.clone();
    for label in clicks.history.iter().flat_map(|click| labels.labels(click)) {
        *counts.entry(label).or_default() += 1;
    }
    let mut most: Vec<(&String, u64)> = counts.into_iter().collect();
    most.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    known.learn(&clicks.events);
    let hit = |portion: &Vec<Click>| {
        let met = known.met.clone();
        let novel = known.learn(portion);
        let hits = novel.iter().filter(|(user, new)| {
            let open = most.iter().filter(|(label, _)| met.get(user).is_none_or(|met| !met.contains(*label)));
            open.take(5).any(|(label, _)| new.contains(*label))
        });
        hits.count() as f64 / novel.len().max(1) as f64
    };
    Ok(clicks.portions.iter().map(hit).collect())
}
