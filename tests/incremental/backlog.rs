//! `after`: what is asked when, and that waiting changes nothing but that.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use coea_engine::{runtime::backlog::Clock, state::layered::Changes};

use super::*;

/// Bounds as they are written and as numbers: rows and milliseconds.
#[derive(Clone, Copy, Debug)]
struct After {
    events: Option<u64>,
    millis: Option<u64>,
}

impl After {
    const LONG: After = After { events: Some(1_000), millis: None };

    fn written(self) -> String {
        let events = self.events.map(|n| format!("events: {n}"));
        let time = self.millis.map(|n| format!("time: {n}ms"));
        format!("after: {{ {} }}", events.into_iter().chain(time).collect::<Vec<_>>().join(", "))
    }
}

/// The node of each operator that asks.
const ASKING: [(&str, &str); 3] =
    [("csa_encoder", "embedding"), ("llm_sampler", "novel"), ("scorer", "scored")];

fn pipeline(afters: &[(&str, After)]) -> String {
    afters.iter().fold(PIPELINE.to_string(), |text, (op, after)| {
        let after = after.written();
        let put = match *op {
            "csa_encoder" => format!("op: csa_encoder\n    {after}"),
            op => format!("op: {op}, {after}"),
        };
        let put = text.replace(&format!("op: {op}"), &put);
        assert_ne!(put, text);
        put
    })
}

/// A bench whose nodes wait, after its first epoch, and its clock.
fn waiting(afters: &[(&str, After)]) -> (Bench, Arc<AtomicU64>) {
    let mut bench = bench();
    bench.rewrite(&pipeline(afters)).unwrap();
    let clock = Arc::new(AtomicU64::new(1_000_000));
    let first = bench.epoch("state", at(&clock, Options { workers: 1, ..Options::default() })).unwrap();
    assert!(first.language_calls() > 0);
    assert_eq!(backlog(&first), 0, "a first run asks everything");
    (bench, clock)
}

fn at(clock: &Arc<AtomicU64>, options: Options) -> Options {
    Options { clock: Clock::Set(clock.clone()), ..options }
}

fn backlog(report: &Report) -> u64 {
    report.nodes.iter().map(|node| node.backlog).sum()
}

fn of<'r>(report: &'r Report, name: &str) -> &'r coea_engine::runtime::report::NodeReport {
    report.nodes.iter().find(|node| node.node == name).unwrap()
}

/// Clicks on all that is there to click: several keys that nobody had before.
fn clicks() -> Vec<Change> {
    vec![event(1, 2, 4, 30, 1), event(1, 5, 4, 31, 1), event(2, 7, 4, 30, 1), event(3, 4, 5, 32, 1)]
}

fn flush(bench: &Bench, clock: &Arc<AtomicU64>) -> Report {
    bench.epoch("state", at(clock, Options { workers: 1, flush: true, ..Options::default() })).unwrap()
}

/// The rule, in the plainest way: which requests wait since when.
#[derive(Default)]
struct Rule {
    since: BTreeMap<(String, MemoKey), (u64, u64)>,
    taken: u64,
}

impl Rule {
    /// How many requests an inference has that nobody answered before, and whether they are asked.
    fn expect(&self, leaf: &str, open: &BTreeSet<MemoKey>, after: Option<After>, now: u64) -> (u64, bool) {
        let since = open.iter().filter_map(|key| self.since.get(&(leaf.to_string(), *key)));
        let over = after.is_none_or(|after| {
            since.min().is_some_and(|(taken, at)| {
                after.events.is_some_and(|n| self.taken - taken >= n)
                    || after.millis.is_some_and(|n| now - at >= n)
            })
        });
        (open.len() as u64, over)
    }

    fn settle(&mut self, leaf: &str, open: BTreeSet<MemoKey>, asked: bool, now: u64) {
        let before = std::mem::take(&mut self.since);
        let (own, others): (Vec<_>, Vec<_>) = before.into_iter().partition(|((of, _), _)| of == leaf);
        self.since.extend(others);
        let own: BTreeMap<_, _> = own.into_iter().collect();
        for key in open.into_iter().filter(|_| !asked) {
            let at = (leaf.to_string(), key);
            let since = own.get(&at).copied().unwrap_or((self.taken, now));
            self.since.insert(at, since);
        }
    }
}

fn after() -> impl Strategy<Value = After> {
    let events = prop_oneof![Just(None), (1u64..9).prop_map(Some)];
    let millis = prop_oneof![Just(None), (1u64..60).prop_map(Some)];
    (events, millis)
        .prop_filter("a bound", |(events, millis)| events.is_some() || millis.is_some())
        .prop_map(|(events, millis)| After { events, millis })
}

/// Epochs, one of them empty, each with the milliseconds before it and whether a process ends there.
fn stream() -> impl Strategy<Value = Vec<(Vec<Change>, u64, bool)>> {
    (prop::collection::vec(epochs(), 2), prop::collection::vec((0u64..30, any::<bool>()), 8)).prop_map(
        |(epochs, beside)| {
            let mut epochs: Vec<Vec<Change>> = epochs.concat();
            epochs.insert(epochs.len() / 2, Vec::new());
            epochs.into_iter().zip(beside).map(|(epoch, (millis, reopen))| (epoch, millis, reopen)).collect()
        },
    )
}

proptest! {
    #![proptest_config(cases(8))]

    #[test]
    fn waiting_changes_only_when_something_is_asked(
        stream in stream(),
        workers in prop::sample::select(vec![1usize, 2, 4]),
        afters in prop::collection::vec(prop::option::weighted(0.7, after()), 3),
    ) {
        let afters: Vec<Option<After>> = afters;
        let given: Vec<(&str, After)> =
            ASKING.iter().zip(&afters).filter_map(|((op, _), after)| Some((*op, (*after)?))).collect();
        let (mut bench, clock) = waiting(&given);
        let options = || at(&clock, Options { workers, again: true, ..Options::default() });
        let mut driver = bench.driver("state", options()).unwrap();
        let mut rule = Rule::default();
        let mut may = check(&bench, "state", Calls::Memo);
        for (epoch, millis, reopen) in &stream {
            clock.fetch_add(*millis, Ordering::Relaxed);
            if *reopen {
                drop(driver);
                driver = bench.driver("state", options()).unwrap();
            }
            let (before, calls) = (memo_keys(&bench, "state"), bench.models.calls());
            let dry = at(&clock, Options { dry: true, ..delta(&bench, epoch) });
            let plan = bench.epoch("state", dry).unwrap();
            prop_assert_eq!(bench.models.calls(), calls);
            let report = take(&bench, &mut driver, epoch);
            prop_assert_eq!(report.language_calls(), bench.models.calls() - calls);
            rule.taken += epoch.iter().map(|change| change.diff.unsigned_abs()).sum::<u64>();

            let state = bench.state("state").unwrap();
            let fresh = oracle::recompute(&bench.plan, &state, Calls::Again).unwrap();
            let differences = verify::compare(&bench.plan, &state, &fresh).unwrap();
            prop_assert!(differences.is_empty(), "{:#?}", differences);
            let now = clock.load(Ordering::Relaxed);
            for ((_, node), after) in ASKING.iter().zip(&afters) {
                let name = fresh.asked.keys().find(|name| name.split('/').next() == Some(node)).unwrap();
                let open = fresh.asked[name].difference(&before).copied().collect();
                let (expected, asks) = rule.expect(name, &open, *after, now);
                let ran = of(&report, node);
                let told = (ran.calls.calls, ran.backlog);
                prop_assert_eq!(told, if asks { (expected, 0) } else { (0, expected) }, "{}", node);
                if asks {
                    may.extend(&fresh.asked[name]);
                }
                rule.settle(name, open, asks, now);
                let planned = of(&plan, node);
                match planned.calls_basis {
                    Basis::Exact => prop_assert_eq!((planned.calls.calls, planned.backlog), told, "{}", node),
                    _ => prop_assert!(planned.calls.calls >= ran.calls.calls, "bound of {}", node),
                }
            }
            for (planned, ran) in plan.nodes.iter().zip(&report.nodes) {
                match planned.changed_basis {
                    Basis::Exact => prop_assert_eq!(planned.changed, ran.changed, "{}", planned.node),
                    _ => prop_assert!(planned.changed >= ran.changed, "bound of {}", planned.node),
                }
            }
            prop_assert!(memo_keys(&bench, "state").is_subset(&may));
        }
        drop(driver);
        prop_assert_eq!(backlog(&flush(&bench, &clock)), 0);
        check(&bench, "state", Calls::Again);
        bench.rewrite(PIPELINE).unwrap();
        let all: Vec<Change> = stream.iter().flat_map(|(epoch, ..)| epoch.clone()).collect();
        let models_from = Some(bench.path("state"));
        bench.epoch("cold", Options { models_from, ..delta(&bench, &all) }).unwrap();
        prop_assert_eq!(readable(&bench, "state"), readable(&bench, "cold"));
        prop_assert!(bench.dump("state").unwrap() == bench.dump("cold").unwrap());
    }
}

#[test]
fn what_came_and_went_while_it_waited_is_never_asked() {
    let (bench, clock) = waiting(&[("llm_sampler", After::LONG), ("scorer", After::LONG)]);
    let (before, calls) = (readable(&bench, "state"), bench.models.calls());
    let there = bench.epoch("state", at(&clock, delta(&bench, &clicks()))).unwrap();
    assert!(of(&there, "novel").backlog > 0 && of(&there, "scored").backlog > 0);
    assert!(readable(&bench, "state")["backlog"].len() as u64 == backlog(&there));
    check(&bench, "state", Calls::Memo);
    let back: Vec<Change> = clicks().into_iter().map(|c| Change { diff: -1, ..c }).collect();
    let gone = bench.epoch("state", at(&clock, delta(&bench, &back))).unwrap();
    assert_eq!((backlog(&gone), flush(&bench, &clock).language_calls()), (0, 0));
    assert_eq!((readable(&bench, "state"), bench.models.calls()), (before, calls));
}

#[test]
fn a_plan_knows_who_waits_also_where_it_does_not_know_what_is_asked() {
    let (bench, clock) = waiting(&[("llm_sampler", After::LONG)]);
    let dry = Options { dry: true, resolve: false, ..delta(&bench, &clicks()) };
    let plan = bench.epoch("state", at(&clock, dry)).unwrap();
    let (novel, scored) = (of(&plan, "novel"), of(&plan, "scored"));
    assert_eq!((novel.calls.calls, novel.calls_basis), (0, Basis::Exact));
    assert_eq!(scored.calls_basis, Basis::Bound);
    assert!(scored.calls.calls > 0);
}

#[test]
fn a_scorer_that_does_not_wait_goes_on_below_an_encoder_that_does() {
    let (bench, clock) = waiting(&[("csa_encoder", After::LONG)]);
    bench.epoch("state", at(&clock, delta(&bench, &clicks()))).unwrap();
    let mut asked = 0;
    // An item's new genres change what is recent, and so prompts, of users whose history they leave.
    for at_item in 1..=KNOWN_ITEMS {
        let changes = [item(at_item, &base_genres(at_item), -1), item(at_item, "Noir|Comedy", 1)];
        let report = bench.epoch("state", at(&clock, delta(&bench, &changes))).unwrap();
        assert!(of(&report, "embedding").backlog > 0);
        asked += of(&report, "scored").calls.calls;
        check(&bench, "state", Calls::Memo);
    }
    assert!(asked > 0);
    assert!(of(&flush(&bench, &clock), "embedding").calls.calls > 0);
    check(&bench, "state", Calls::Again);
}

#[test]
fn the_time_is_over_without_any_input_and_a_failed_call_waits_anew() {
    let after = After { events: None, millis: Some(500) };
    let (bench, clock) = waiting(&[("llm_sampler", after), ("scorer", after)]);
    let options = at(&clock, Options { workers: 1, again: true, ..Options::default() });
    let mut driver = bench.driver("state", options.clone()).unwrap();
    assert_eq!(driver.due_in(), None);
    let held = take(&bench, &mut driver, &clicks());
    assert!(backlog(&held) > 0);
    assert_eq!(driver.due_in(), Some(Duration::from_millis(500)));
    clock.fetch_add(499, Ordering::Relaxed);
    assert!(take(&bench, &mut driver, &[]).idle);
    drop(driver);
    let mut driver = bench.driver("state", options).unwrap();
    assert_eq!(driver.due_in(), Some(Duration::from_millis(1)));
    clock.fetch_add(1, Ordering::Relaxed);
    bench.models.fail_on(Some("?"));
    let failed = take(&bench, &mut driver, &[]);
    let errors: u64 = failed.nodes.iter().map(|node| node.calls.errors).sum();
    assert_eq!((failed.language_calls(), errors, backlog(&failed)), (backlog(&held), errors, errors));
    assert!(errors > 0);
    check(&bench, "state", Calls::Memo);
    assert_eq!(driver.due_in(), Some(Duration::from_millis(500)));
    assert!(take(&bench, &mut driver, &[]).idle);
    bench.models.fail_on(None);
    clock.fetch_add(500, Ordering::Relaxed);
    let asked = take(&bench, &mut driver, &[]);
    assert_eq!((asked.language_calls(), backlog(&asked), driver.due_in()), (errors, 0, None));
    check(&bench, "state", Calls::Again);
    assert!(!readable(&bench, "state").contains_key("errors"));
}

#[test]
fn a_flush_that_was_cut_off_leaves_what_waits_as_it_was() {
    let (bench, clock) = waiting(&[("llm_sampler", After::LONG), ("scorer", After::LONG)]);
    let held = backlog(&bench.epoch("state", at(&clock, delta(&bench, &clicks()))).unwrap());
    let (before, calls) = (readable(&bench, "state"), bench.models.calls());
    let cut = Options { workers: 1, flush: true, max_calls: Some(1), ..Options::default() };
    assert!(matches!(bench.epoch("state", at(&clock, cut)), Err(RunError::Budget(1))));
    check(&bench, "state", Calls::Memo);
    assert_eq!(begin(&bench, "state").language_calls(), 0);
    assert_eq!(readable(&bench, "state"), before);
    let next = bench.epoch("state", at(&clock, delta(&bench, &[event(9, 9, 1, 1, 1)]))).unwrap();
    assert_eq!((backlog(&next), next.language_calls()), (held - 1, 0), "what was paid for is used");
    check(&bench, "state", Calls::Memo);
    assert_eq!(flush(&bench, &clock).language_calls(), held - 1);
    assert_eq!(bench.models.calls() - calls, held);
    // Twelve epochs on, its answers are still in use.
    (40..52).for_each(|time| {
        _ = bench.epoch("state", at(&clock, delta(&bench, &[event(9, 9, 1, time, 1)]))).unwrap();
    });
    check(&bench, "state", Calls::Again);
}

#[test]
fn what_another_node_asked_meanwhile_is_not_waited_for() {
    let (mut bench, clock) = waiting(&[("llm_sampler", After::LONG)]);
    let text = pipeline(&[("llm_sampler", After::LONG)]);
    bench.rewrite(&text.replace("relevance.jinja", "novelty.jinja")).unwrap();
    bench.epoch("state", at(&clock, Options { workers: 1, ..Options::default() })).unwrap();
    let mut driver =
        bench.driver("state", at(&clock, Options { again: true, ..Options::default() })).unwrap();
    let report = take(&bench, &mut driver, &clicks());
    let (novel, scored) = (of(&report, "novel"), of(&report, "scored"));
    assert_eq!((novel.calls.memo_hits, novel.backlog), (scored.calls.calls, 0));
    assert!(scored.calls.calls > 0);
    check(&bench, "state", Calls::Again);
}

#[test]
fn what_a_change_of_the_pipeline_asks_does_not_wait() {
    let nodes = [("csa_encoder", After::LONG), ("llm_sampler", After::LONG), ("scorer", After::LONG)];
    let (mut bench, clock) = waiting(&nodes);
    let held = bench.epoch("state", at(&clock, delta(&bench, &clicks()))).unwrap();
    assert!(of(&held, "embedding").backlog > 0 && of(&held, "novel").backlog > 0);
    // Another node of the pipeline changes: that is none of theirs.
    let text = pipeline(&nodes);
    bench.rewrite(&text.replace("threshold: 0.4", "threshold: 0.3")).unwrap();
    let other = bench.epoch("state", at(&clock, Options::default())).unwrap();
    assert_eq!((backlog(&other), other.language_calls()), (backlog(&held), 0));
    check(&bench, "state", Calls::Memo);
    // The quantiser is fitted again, and is to see every vector; all below it is another thing.
    bench.rewrite(&text.replace("codebook: 3", "codebook: 4")).unwrap();
    let fitted = bench.epoch("state", at(&clock, Options::default())).unwrap();
    assert_eq!(of(&fitted, "embedding").calls.calls, of(&held, "embedding").backlog);
    assert!(fitted.language_calls() > 0);
    assert_eq!(backlog(&fitted), 0);
    check(&bench, "state", Calls::Again);
}

#[test]
fn without_after_what_waited_is_asked_at_once() {
    let (mut bench, clock) = waiting(&[("llm_sampler", After::LONG)]);
    let held = bench.epoch("state", at(&clock, delta(&bench, &clicks()))).unwrap();
    bench.rewrite(PIPELINE).unwrap();
    check(&bench, "state", Calls::Memo);
    assert_eq!(begin(&bench, "state").language_calls(), backlog(&held));
    check(&bench, "state", Calls::Again);
    assert!(!readable(&bench, "state").contains_key("backlog"));
}

#[test]
fn a_request_may_lack_its_answer_only_where_the_backlog_has_it() {
    let (bench, clock) = waiting(&[("llm_sampler", After::LONG)]);
    bench.epoch("state", at(&clock, delta(&bench, &clicks()))).unwrap();
    let state = bench.state("state").unwrap();
    let tables = || Tables::new(state.snapshot().unwrap().layered("tables"));
    let ((key, row), _) = tables().rows("backlog").unwrap().remove(0);
    let differs = |changes: Changes| {
        state.store.as_ref().unwrap().write(vec![("tables", changes)]).unwrap();
        verify::verify(&bench.plan, &state, false).unwrap().len()
    };
    assert_eq!(differs(Changes::new()), 0);
    let mut without = tables();
    without.apply("backlog", vec![((key.clone(), row.clone()), -1)]).unwrap();
    assert_eq!(differs(without.take()), 1);
    let mut unasked = tables();
    let other = Row::from([key[0].clone(), coea_operators::row::Value::text("0".repeat(64))]);
    unasked.apply("backlog", vec![((key, row.clone()), 1), ((other, row), 1)]).unwrap();
    assert_eq!(differs(unasked.take()), 1);
}
