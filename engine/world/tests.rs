//! What a world promises, checked on the log it writes: statistics with fixed seeds, so they hold or do
//! not; bounds are at least 4.5 standard errors, which no number of tests here passes by chance.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use datafusion::{
    arrow::{
        array::{AsArray, RecordBatch},
        datatypes::{Float64Type, TimestampSecondType, UInt64Type},
    },
    parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder,
};

use super::{events::Exposure, population::SEGMENTS, writer::ROW_GROUP, *};

/// Standard errors that a statistic may be off.
const SIGMAS: f64 = 4.5;

fn small(change: impl Fn(&mut Parameters)) -> Parameters {
    let mut parameters = Parameters {
        seed: 11,
        users: 100,
        items: 120,
        categories: 20,
        groups: 4,
        interactions: 60_000,
        days: 10,
        slate: 5,
        ..Parameters::default()
    };
    change(&mut parameters);
    parameters
}

fn truth(change: impl Fn(&mut Parameters)) -> Truth {
    Truth::new(small(change)).unwrap()
}

/// The log of a day.
fn day(truth: &Truth, day: u32, users: impl Iterator<Item = User>) -> Vec<Exposure> {
    let (mut rows, mut today) = (Vec::new(), Today::new(truth, day));
    for user in users {
        let mut each = |exposure| {
            rows.push(exposure);
            Ok::<(), ()>(())
        };
        today.of_user(user, &mut each).unwrap();
    }
    rows
}

/// The whole log.
fn log(truth: &Truth) -> Vec<Exposure> {
    (0..truth.parameters().days).flat_map(|at| day(truth, at, truth.users())).collect()
}

/// Calls with each row of a log and how often its category was shown to the user that day before.
fn with_shown(truth: &Truth, log: &[Exposure], mut each: impl FnMut(&Exposure, u32, u32)) {
    let mut shown = BTreeMap::new();
    for row in log {
        let day = truth.day(row.timestamp).unwrap();
        let before = shown.entry((row.user, day, shown_for(truth, row.item))).or_insert(0);
        each(row, day, *before);
        *before += 1;
    }
}

fn shown_for(truth: &Truth, item: Item) -> Category {
    truth.categories_of(item).next().unwrap()
}

/// Fails if so many of so many are not what probabilities with this sum and variance give.
fn agrees(what: &str, found: f64, expected: f64, variance: f64) {
    let off = (found - expected).abs() / variance.sqrt().max(1e-9);
    assert!(off <= SIGMAS, "{what}: {found} where {expected:.1} is expected, {off:.1} standard errors off");
}

/// Every file of a folder by its path.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        match path.is_dir() {
            true => {
                all.extend(files(&path).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)))
            }
            false => drop(all.insert(name, fs::read(path).unwrap())),
        }
    }
    all
}

fn generated(parameters: Parameters, threads: usize) -> (tempfile::TempDir, Written) {
    let folder = tempfile::tempdir().unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let truth = Truth::new(parameters).unwrap();
    let written = pool.install(|| generate(&truth, folder.path(), &|_, _| {})).unwrap();
    (folder, written)
}

fn tables(path: &Path) -> Vec<RecordBatch> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(fs::File::open(path).unwrap()).unwrap();
    reader.build().unwrap().map(Result::unwrap).collect()
}

#[test]
fn the_same_seed_gives_the_same_bytes_on_any_number_of_threads() {
    let (one, written) = generated(small(|_| ()), 1);
    let (two, _) = generated(small(|_| ()), 2);
    let (one, two) = (files(one.path()), files(two.path()));
    assert_eq!(one.len(), 13);
    assert_eq!((written.files, written.interactions), (13, 60_000));
    assert_eq!(written.bytes, one.values().map(|bytes| bytes.len() as u64).sum::<u64>());
    assert!(one == two, "the bytes differ");
    let (other, _) = generated(small(|p| p.seed = 12), 2);
    for (name, bytes) in files(other.path()) {
        assert!(one[&name] != bytes, "{name} is the same under another seed");
    }
}

#[test]
fn files_say_what_the_log_says() {
    let (folder, written) = generated(small(|_| ()), 2);
    let truth = Truth::restore(&folder.path().join("world.json")).unwrap();
    let mut clicks = 0;
    for at in 0..10 {
        let expected = day(&truth, at, truth.users());
        let mut expected = expected.iter();
        for batch in tables(&folder.path().join(format!("events/day-{at:05}.parquet"))) {
            let numbers = |name: &str| batch[name].as_primitive::<UInt64Type>().values().to_vec();
            let (users, items, slates) = (numbers("user_id"), numbers("item_id"), numbers("slate"));
            for row in 0..batch.num_rows() {
                let found = Exposure {
                    user: truth.user(users[row]).unwrap(),
                    item: truth.item(items[row]).unwrap(),
                    timestamp: batch["timestamp"].as_primitive::<TimestampSecondType>().value(row),
                    slate: slates[row],
                    propensity: batch["propensity"].as_primitive::<Float64Type>().value(row),
                    clicked: batch["clicked"].as_boolean().value(row),
                };
                clicks += u64::from(found.clicked);
                assert_eq!(Some(&found), expected.next());
            }
        }
        assert_eq!(expected.next(), None);
    }
    assert_eq!(clicks, written.clicks);
    let items = tables(&folder.path().join("items.parquet"));
    assert_eq!(items[0].num_rows(), 120);
    let names = items[0]["categories"].as_list::<i32>().value(7);
    let names: Vec<&str> = names.as_string::<i32>().iter().flatten().collect();
    let of_item = truth.categories_of(truth.item(8).unwrap());
    assert_eq!(names, of_item.map(|category| truth.name(category)).collect::<Vec<_>>());
    let users = tables(&folder.path().join("users.parquet"));
    let ages = users[0]["age"].as_primitive::<UInt64Type>();
    assert!((0..100).all(|row| ages.value(row) == truth.profile(User(row as u32)).age));
}

#[test]
fn a_user_s_day_depends_on_no_other_user_and_no_other_day() {
    let truth = truth(|_| ());
    let mut forwards = day(&truth, 4, truth.users());
    let mut backwards = day(&truth, 4, truth.users().collect::<Vec<_>>().into_iter().rev());
    assert_ne!(forwards, backwards);
    forwards.sort_by_key(|row| (row.slate, row.item));
    backwards.sort_by_key(|row| (row.slate, row.item));
    assert_eq!(forwards, backwards);
}

#[test]
fn the_log_is_as_long_as_was_asked_and_made_of_slates() {
    let truth = truth(|_| ());
    let log = log(&truth);
    assert_eq!(log.len(), 60_000);
    let mut slates: BTreeMap<u64, Vec<&Exposure>> = BTreeMap::new();
    log.iter().for_each(|row| slates.entry(row.slate).or_default().push(row));
    assert_eq!(slates.keys().copied().collect::<Vec<_>>(), (0..12_000).collect::<Vec<_>>());
    let mut times = BTreeSet::new();
    for rows in slates.values() {
        assert!(rows.iter().all(|row| (row.user, row.timestamp) == (rows[0].user, rows[0].timestamp)));
        let categories: BTreeSet<Category> = rows.iter().map(|row| shown_for(&truth, row.item)).collect();
        assert_eq!(categories.len(), 5);
        assert!(times.insert((rows[0].user, rows[0].timestamp)), "two slates of a user at one time");
        let second = (rows[0].timestamp - truth.parameters().start) % 86_400;
        assert!((7 * 3600..23 * 3600).contains(&second));
    }
    assert_eq!(times.iter().map(|(user, _)| *user).collect::<BTreeSet<_>>().len(), 100);
    for rows in log.windows(2) {
        let (a, b) = (&rows[0], &rows[1]);
        assert!(a.user != b.user || a.timestamp <= b.timestamp, "a user's time runs backwards");
    }
}

#[test]
fn slates_of_a_day_differ() {
    let truth = truth(|p| (p.exploration, p.days, p.interactions) = (1.0, 1, 50_000));
    let mut slates: BTreeMap<u64, BTreeSet<Category>> = BTreeMap::new();
    for row in log(&truth).iter().filter(|row| truth.population.segment(row.user.0) == 4) {
        slates.entry(row.slate).or_default().insert(shown_for(&truth, row.item));
    }
    let (all, distinct) = (slates.len(), slates.into_values().collect::<BTreeSet<_>>().len());
    assert!(all > 300 && distinct > 55, "{distinct} different ones of {all}");
}

#[test]
fn the_smallest_world_is_one() {
    let one = |p: &mut Parameters| {
        (p.users, p.items, p.categories, p.groups) = (1, 1, 1, 1);
        (p.slate, p.interactions) = (1, 2);
    };
    let (folder, written) = generated(small(one), 1);
    assert_eq!(written.interactions, 2);
    let rows = |at: u32| {
        let tables = tables(&folder.path().join(format!("events/day-{at:05}.parquet")));
        tables.iter().map(RecordBatch::num_rows).sum::<usize>()
    };
    // Most days are empty, and their files are there.
    assert_eq!((0..10).map(rows).sum::<usize>(), 2);
    assert_eq!(log(&truth(one))[0].propensity, 1.0);
}

#[test]
fn slates_come_in_sessions() {
    let truth = truth(|p| (p.users, p.interactions) = (1, 5_000));
    let mut times: Vec<i64> = log(&truth).iter().map(|row| row.timestamp).collect();
    times.dedup();
    let close = times.windows(2).filter(|pair| pair[1] - pair[0] <= 240).count() as f64;
    // Of five slates in a row four follow another one closely.
    assert!((0.75..0.9).contains(&(close / times.len() as f64)), "{close} of {}", times.len());
}

#[test]
fn the_busiest_day_there_may_be_keeps_slates_apart() {
    for session in [1, 3, 20] {
        let change = |p: &mut Parameters| {
            (p.users, p.days, p.slate, p.unrest, p.session) = (1, 1, 1, 0.0, session);
            p.interactions = 40_000;
        };
        let mut times: Vec<i64> = log(&truth(change)).iter().map(|row| row.timestamp).collect();
        assert!(times.is_sorted());
        times.dedup();
        assert_eq!(times.len(), 40_000);
        assert!((times[39_999] - small(change).start) < 23 * 3600);
    }
}

#[test]
fn every_logged_click_is_what_the_truth_answers() {
    let truth = truth(|p| p.fatigue = 1.0);
    let mut clicks = 0;
    with_shown(&truth, &log(&truth), |row, _, before| {
        let answer = truth.would_click_item(row.user, row.item, row.timestamp, before);
        assert_eq!(answer, row.clicked, "{row:?}");
        clicks += u32::from(answer);
    });
    assert!(clicks > 3_000, "{clicks}");
}

#[test]
fn click_rates_agree_with_probabilities() {
    let truth = truth(|_| ());
    let mut bins: BTreeMap<(&str, usize), (f64, f64, f64)> = BTreeMap::new();
    with_shown(&truth, &log(&truth), |row, day, before| {
        let p = truth.item_probability(row.user, row.item, day, before);
        for bin in [
            ("probability in twentieths", (20.0 * p) as usize),
            ("group", truth.group(row.user)),
            ("category", shown_for(&truth, row.item).index()),
            ("times shown", before.min(6) as usize),
            ("day", day as usize),
        ] {
            let (found, expected, variance) = bins.entry(bin).or_default();
            *found += f64::from(u8::from(row.clicked));
            *expected += p;
            *variance += p * (1.0 - p);
        }
    });
    for ((what, bin), (found, expected, variance)) in &bins {
        agrees(&format!("clicks by {what}, {bin}"), *found, *expected, *variance);
    }
    assert!(bins.keys().filter(|(what, _)| *what == "probability in twentieths").count() >= 12);
}

#[test]
fn would_click_is_one_answer_per_user_category_and_day_with_the_right_rate() {
    let truth = truth(|_| ());
    let (mut found, mut expected, mut variance, mut differing) = (0.0, 0.0, 0.0, 0);
    for user in truth.users() {
        for category in truth.categories() {
            for day in 0..20 {
                let (answer, p) =
                    (truth.would_click(user, category, day), truth.probability(user, category, day));
                assert_eq!(answer, truth.would_click(user, category, day));
                differing += usize::from(answer != truth.would_click(user, category, day + 1));
                found += f64::from(u8::from(answer));
                expected += p;
                variance += p * (1.0 - p);
            }
        }
    }
    agrees("clicks on categories", found, expected, variance);
    assert!(differing > 5_000, "answers of two days differ in {differing} of 40000 cases");
}

#[test]
fn what_is_shown_agrees_with_the_propensities() {
    let truth = truth(|p| p.interactions = 200_000);
    let mut slates = BTreeMap::new();
    let mut shown = BTreeMap::new();
    let mut logged = BTreeMap::new();
    for row in log(&truth) {
        let segment = truth.population.segment(row.user.0);
        slates.entry(segment).or_insert_with(BTreeSet::new).insert(row.slate);
        *shown.entry((segment, row.item)).or_insert(0u32) += 1;
        let before = *logged.entry((segment, row.item)).or_insert(row.propensity);
        assert_eq!(before, row.propensity, "one propensity for each segment and item");
    }
    assert!(slates.len() > 6 && SEGMENTS == 12, "{}", slates.len());
    for (segment, slates) in &slates {
        let slates = slates.len() as f64;
        let mut all = 0.0;
        for item in (1..=120).map(|id| truth.item(id).unwrap()) {
            let Some(p) = logged.get(&(*segment, item)) else { continue };
            let found = f64::from(shown[&(*segment, item)]);
            agrees(&format!("segment {segment}, {item:?}"), found, slates * p, slates * p * (1.0 - p));
            all += p;
        }
        // Items that were never shown to few users are missing from the sum.
        assert!((all - 5.0).abs() < if slates > 3_000.0 { 1e-9 } else { 0.5 }, "{all} of {slates} slates");
        let user = truth.users().find(|user| truth.population.segment(user.0) == *segment).unwrap();
        let all: f64 = truth.categories().map(|category| truth.propensity(user, category)).sum();
        assert!((all - 5.0).abs() < 1e-9, "propensities of categories sum to {all}");
    }
}

/// The slope of ln y over ln x, by least squares.
fn slope(points: impl Iterator<Item = (f64, f64)>) -> f64 {
    let points: Vec<(f64, f64)> = points.map(|(x, y)| (x.ln(), y.ln())).collect();
    let n = points.len() as f64;
    let (mx, my) = (points.iter().map(|p| p.0).sum::<f64>() / n, points.iter().map(|p| p.1).sum::<f64>() / n);
    let up: f64 = points.iter().map(|(x, y)| (x - mx) * (y - my)).sum();
    up / points.iter().map(|(x, _)| (x - mx) * (x - mx)).sum::<f64>()
}

#[test]
fn users_items_and_groups_follow_zipf() {
    for exponent in [0.5, 1.0] {
        let change = |p: &mut Parameters| {
            (p.user_exponent, p.item_exponent, p.group_exponent) = (exponent, exponent, exponent);
            (p.interactions, p.items, p.categories, p.days) = (400_000, 100, 5, 30);
        };
        let truth = truth(change);
        let log = log(&truth);
        let mut of_users: BTreeMap<User, f64> = BTreeMap::new();
        let mut of_items: BTreeMap<Item, f64> = BTreeMap::new();
        for row in &log {
            *of_users.entry(row.user).or_default() += 1.0;
            *of_items.entry(row.item).or_default() += 1.0;
        }
        let mut active: Vec<f64> = of_users.into_values().collect();
        active.sort_by(|a, b| b.total_cmp(a));
        let ranks = (1..).map(f64::from);
        let users = slope(ranks.clone().zip(active));
        assert!((users + exponent).abs() < 0.02, "users: {users} for {exponent}");
        for category in 0..5 {
            let shelf = truth.catalogue.shelf(category).iter().take(8);
            let shown = shelf.map(|item| of_items.get(&Item(*item)).copied().unwrap_or_default());
            let items = slope(ranks.clone().zip(shown));
            assert!((items + exponent).abs() < 0.05, "items of {category}: {items} for {exponent}");
        }
        let many = Truth::new(small(|p| {
            (p.users, p.interactions, p.group_exponent) = (40_000, 200_000, exponent);
        }));
        let many = many.unwrap();
        let mut sizes = [0.0; 4];
        many.users().for_each(|user| sizes[many.group(user)] += 1.0);
        let groups = slope(ranks.zip(sizes));
        assert!((groups + exponent).abs() < 0.05, "groups: {groups} for {exponent}");
    }
}

/// Pearson's correlation.
fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let n = a.len() as f64;
    let (ma, mb) = (a.iter().sum::<f64>() / n, b.iter().sum::<f64>() / n);
    let sum = |f: fn(f64, f64) -> f64| a.iter().zip(b).map(|(a, b)| f(a - ma, b - mb)).sum::<f64>();
    sum(|a, b| a * b) / (sum(|a, _| a * a) * sum(|_, b| b * b)).sqrt()
}

#[test]
fn groups_can_be_recovered_from_clicks() {
    let truth = truth(|p| (p.users, p.interactions, p.group_exponent) = (400, 400_000, 0.0));
    // Click rates by (group, half of its users), category by category.
    let mut rates = vec![[(0.0, 0.0); 20]; 8];
    for row in log(&truth) {
        let half = 2 * truth.group(row.user) + (row.user.id() % 2) as usize;
        let (clicks, shown) = &mut rates[half][shown_for(&truth, row.item).index()];
        *clicks += f64::from(u8::from(row.clicked));
        *shown += 1.0;
    }
    let rates: Vec<Vec<f64>> =
        rates.iter().map(|of| of.iter().map(|(clicks, shown)| clicks / shown).collect()).collect();
    for group in 0..4 {
        let within = correlation(&rates[2 * group], &rates[2 * group + 1]);
        assert!(within > 0.75, "halves of group {group} agree by {within}");
        for other in (0..4).filter(|other| *other != group) {
            let between = correlation(&rates[2 * group], &rates[2 * other + 1]);
            assert!(between < within - 0.2, "groups {group} and {other}: {between}, within {within}");
        }
        let planted = correlation(&rates[2 * group], truth.taste(group).unwrap());
        assert!(planted > 0.75, "group {group} and what was planted: {planted}");
    }
    assert!(truth.taste(4).is_none());
}

#[test]
fn features_hint_at_the_group_and_do_not_tell_it() {
    for (informative, least, most) in [(0.0, 0.0, 0.03), (0.5, 0.2, 0.6), (1.0, 0.6, 1.0)] {
        let truth = truth(|p| {
            (p.users, p.interactions, p.informative) = (20_000, 100_000, informative);
        });
        // How far the likeliest group, seen through P(group | segment), is above the largest.
        let mut counts = vec![[0.0; 4]; SEGMENTS];
        truth.users().for_each(|user| counts[truth.population.segment(user.0)][truth.group(user)] += 1.0);
        let mut sizes = [0.0; 4];
        counts.iter().for_each(|of| (0..4).for_each(|group| sizes[group] += of[group]));
        let largest = |of: &[f64; 4]| of.iter().copied().fold(0.0, f64::max);
        let (blind, seeing) = (largest(&sizes), counts.iter().map(largest).sum::<f64>());
        let gain = (seeing - blind) / (20_000.0 - blind);
        assert!((least..=most).contains(&gain), "informative {informative}: gain {gain}");
        for (segment, of) in counts.iter().enumerate() {
            let all: f64 = of.iter().sum();
            for (group, p) in truth.population.given_segment(segment).iter().enumerate() {
                agrees("P(group | segment)", of[group], all * p, (all * p * (1.0 - p)).max(1e-3));
            }
        }
    }
}

#[test]
fn bursts_and_drift_are_in_the_log_as_far_as_they_were_asked_for() {
    // Clicks on hot days, and elsewhere, as shares of what a still world of the same seed expects.
    let shares = |burst: f64| {
        let change = |p: &mut Parameters| {
            (p.drift, p.days, p.interactions) = (0.0, 40, 200_000);
            (p.fatigue, p.burst) = (0.0, burst);
        };
        let (truth, still) = (truth(change), self::truth(|p| (change(p), p.burst = 0.0).1));
        let (mut hot, mut cold) = ((0.0, 0.0), (0.0, 0.0));
        for row in log(&truth) {
            let day = truth.day(row.timestamp).unwrap();
            let category = shown_for(&truth, row.item);
            let of = truth.categories_of(row.item).count();
            let burning = truth.liking(0, category.index(), day) - still.liking(0, category.index(), day);
            if of > 1 {
                continue;
            }
            let (found, expected) = if burning > 0.0 { &mut hot } else { &mut cold };
            *found += f64::from(u8::from(row.clicked));
            *expected += still.item_probability(row.user, row.item, day, 0);
        }
        (hot.0 / hot.1, cold.0 / cold.1)
    };
    let (hot, cold) = shares(1.5);
    assert!(hot > 1.7 && (cold - 1.0).abs() < 0.05, "hot {hot}, cold {cold}");
    let (none, all) = shares(0.0);
    assert!(none.is_nan() && (all - 1.0).abs() < 0.05, "without bursts: {none} {all}");
    // How far chances move within the log.
    let moved = |drift: f64| {
        let truth = truth(|p| (p.burst, p.drift, p.days) = (0.0, drift, 40));
        let pairs = truth.users().flat_map(|user| truth.categories().map(move |category| (user, category)));
        let moved =
            pairs.map(|(user, c)| (truth.probability(user, c, 39) - truth.probability(user, c, 0)).abs());
        moved.sum::<f64>() / 2_000.0
    };
    assert_eq!(moved(0.0), 0.0);
    assert!(moved(0.5) > 0.04 && moved(1.0) > 1.5 * moved(0.5), "{} {}", moved(0.5), moved(1.0));
}

#[test]
fn fatigue_makes_the_same_category_less_attractive_until_the_next_morning() {
    let truth = truth(|_| ());
    let (user, item) = (truth.user(1).unwrap(), truth.item(1).unwrap());
    let logit = |shown: u32| {
        let p = truth.item_probability(user, item, 3, shown);
        (p / (1.0 - p)).ln()
    };
    for shown in [1, 2, 7] {
        let expected = logit(0) - truth.parameters().fatigue * f64::from(1 + shown).ln();
        assert!((logit(shown) - expected).abs() < 1e-9);
    }
    let still = self::truth(|p| p.fatigue = 0.0);
    assert_eq!(still.item_probability(user, item, 3, 9), still.item_probability(user, item, 3, 0));
}

#[test]
fn rows_are_written_as_they_come() {
    let (folder, _) = generated(small(|p| (p.days, p.interactions) = (1, 300_000)), 1);
    let file = fs::File::open(folder.path().join("events/day-00000.parquet")).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let rows: Vec<i64> = reader.metadata().row_groups().iter().map(|group| group.num_rows()).collect();
    let full = ROW_GROUP as i64;
    assert_eq!(rows, [full, full, 300_000 - 2 * full]);
}

#[test]
fn regret_is_known() {
    let truth = truth(|_| ());
    let regret =
        |user, named: &[Category], may: &dyn Fn(Category) -> bool| truth.judge(user, 3, named, may).regret();
    for user in truth.users().take(30) {
        let best = truth.best(user, 3, 4, |_| true);
        assert!(best.is_sorted_by(|a, b| a.1 >= b.1));
        let top: Vec<Category> = best.iter().map(|(category, _)| *category).collect();
        assert!(regret(user, &top, &|_| true).abs() < 1e-12);
        let most = truth.categories().map(|c| truth.probability(user, c, 3)).fold(0.0, f64::max);
        assert_eq!(best[0].1, most);
        let (worse, expected) = ([top[0], top[0], top[2]], best[1].1 - best[2].1);
        assert!((regret(user, &worse, &|_| true) - expected).abs() < 1e-12);
        // Where the best may not be recommended, not to do so is no fault.
        let allowed = |category: Category| category != top[0];
        assert!(regret(user, &top[1..], &allowed).abs() < 1e-12);
        assert!(truth.best(user, 3, 100, allowed).len() == 19);
    }
}

#[test]
fn a_recommendation_is_answered_by_what_is_true() {
    let truth = truth(|_| ());
    let mut shares = BTreeMap::new();
    for user in truth.users() {
        for day in 10..30 {
            let named = [Category(3), Category(17), Category(3)];
            let judged = truth.judge(user, day, &named, |_| true);
            assert_eq!(judged.answers.iter().map(|a| a.category).collect::<Vec<_>>(), named[..2]);
            for answer in &judged.answers {
                assert_eq!(answer.probability, truth.probability(user, answer.category, day));
                assert_eq!(answer.clicked, truth.would_click(user, answer.category, day));
                assert_eq!(shown_for(&truth, answer.item), answer.category);
                shares.entry(answer.item).or_insert((0.0, answer.share)).0 += 1.0;
            }
            let best: f64 = truth.best(user, day, 2, |_| true).iter().map(|(_, p)| p).sum();
            let expected: f64 = judged.answers.iter().map(|answer| answer.probability).sum();
            assert_eq!((judged.expected, judged.best), (expected, best));
            assert!(judged.regret() >= 0.0);
        }
    }
    assert!(shares.len() > 4, "{shares:?}");
    for (item, (found, share)) in shares {
        agrees(&format!("{item:?}"), found, 2_000.0 * share, 2_000.0 * share * (1.0 - share));
    }
}

#[test]
fn the_truth_is_restored_from_its_parameters_and_from_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("world.json");
    let parameters = small(|p| (p.drift, p.seed) = (0.125, u64::MAX));
    parameters.write(&path).unwrap();
    let (there, here) = (Truth::restore(&path).unwrap(), Truth::new(parameters.clone()).unwrap());
    assert_eq!(*there.parameters(), parameters);
    let user = here.user(77).unwrap();
    let answers = |truth: &Truth| {
        truth.categories().map(|c| truth.probability(user, c, 9).to_bits()).collect::<Vec<_>>()
    };
    assert_eq!(answers(&there), answers(&here));
    let name = here.name(Category(3)).to_string();
    assert_eq!(here.category(&name), Some(Category(3)));
    assert!(here.category("no such thing").is_none());
    assert!(here.user(0).is_none() && here.user(101).is_none() && here.item(0).is_none());
    assert_eq!((here.user(100).unwrap().id(), here.item(120).unwrap().id()), (100, 120));
    assert_eq!((here.day(parameters.start), here.day(parameters.start - 1)), (Some(0), None));
    let text = fs::read_to_string(&path).unwrap();
    for (from, to, word) in [
        ("coea.world/1", "coea.world/9", "coea.world/9"),
        ("\"drift\"", "\"drfit\"", "drfit"),
        ("\"users\": 100", "\"users\": 0", "`users` is 0"),
        ("{", "", "line 2"),
    ] {
        fs::write(&path, text.replacen(from, to, 1)).unwrap();
        let error = Truth::restore(&path).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn a_world_overwrites_nothing_and_is_there_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let truth = truth(|_| ());
    let place = folder.path().join("a/world");
    let most = std::sync::atomic::AtomicU64::new(0);
    let progress = |done: u64, all: u64| {
        assert!(done <= all && all == 60_000);
        most.fetch_max(done, std::sync::atomic::Ordering::Relaxed);
    };
    generate(&truth, &place, &progress).unwrap();
    assert_eq!(most.into_inner(), 60_000);
    let before = files(&place);
    let error = generate(&truth, &place, &|_, _| {}).unwrap_err();
    assert!(matches!(error, WorldError::Occupied(_)), "{error}");
    assert_eq!(files(&place), before);
    fs::write(folder.path().join("file"), "").unwrap();
    let error = generate(&truth, &folder.path().join("file"), &|_, _| {}).unwrap_err();
    assert!(matches!(error, WorldError::Occupied(_)), "{error}");
    // Nothing is left aside.
    assert_eq!(fs::read_dir(folder.path().join("a")).unwrap().count(), 1);
}

#[test]
fn parameters_that_are_no_world_are_told_all_at_once() {
    let named = |change: &dyn Fn(&mut Parameters)| -> Vec<&'static str> {
        small(change).misfits().iter().map(|misfit| misfit.name).collect()
    };
    assert!(named(&|_| ()).is_empty());
    for shape in [Shape::Small, Shape::Movielens, Shape::Mtrec] {
        assert_eq!(shape.parameters().misfits(), []);
    }
    assert_eq!(Shape::Mtrec.parameters().interactions, 330_722_395);
    assert_eq!(named(&|p| (p.days, p.drift, p.unrest) = (0, -1.0, f64::NAN)), ["days", "unrest", "drift"]);
    assert_eq!(named(&|p| p.items = 19), ["items"]);
    assert_eq!(named(&|p| p.slate = 21), ["slate", "interactions"]);
    assert_eq!(named(&|p| p.interactions = 60_001), ["interactions"]);
    assert_eq!(named(&|p| p.interactions = 499), ["interactions"]);
    assert_eq!(named(&|p| p.slate = 0), ["slate"]);
    assert_eq!(named(&|p| p.burst_every = 3), ["burst_every"]);
    assert_eq!(named(&|p| (p.users, p.days, p.interactions) = (1, 1, 250_000)), ["days"]);
    let mut parameters = small(|_| ());
    parameters.set("drift", "0.75").unwrap();
    parameters.set("burst_days", "2").unwrap();
    assert_eq!((parameters.drift, parameters.burst_days), (0.75, 2));
    assert!(parameters.set("drfit", "1").unwrap_err().contains("did you mean `drift`"));
    assert!(parameters.set("drift", "much").unwrap_err().contains("a number"));
    assert!(parameters.set("days", "0.5").unwrap_err().contains("days"));
    assert_eq!(parameters.drift, 0.75);
}
