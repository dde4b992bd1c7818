//! What serving answers: a user's own key first, then rungs that know less and have more.
//!
//! Keys are shared by many users, so what one user has already seen is filtered here and not in the
//! store. A key whose categories are all seen is as empty as a missing one; the ladder decides on
//! what is left after the filter.

use std::collections::{BTreeMap, BTreeSet};

use coea_operators::{
    prompt_builder::{DEFAULT_GROUP, Fallback, store_key},
    row::{Row, Value},
    schema::{Column, Type},
};
use serde::Serialize;
use serde_json::Value as Json;

use super::{places::Places, view::View};
use crate::{sinks::NovelTo, state::StateError};

/// Why a lookup has no answer.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The pipeline keeps nothing that could be served.
    #[error("this pipeline serves no lookups: {0}")]
    NothingServed(String),
    /// The id is not of the users' type.
    #[error("`{id}` is no user: {column} is of type {ty}")]
    NoUser {
        /// As given.
        id: String,
        /// The key column.
        column: String,
        /// Its type.
        ty: String,
    },
    /// Users have more than one key column.
    #[error("users are keyed by {0} columns; a lookup takes one")]
    WideKey(usize),
    /// The state cannot be read.
    #[error(transparent)]
    State(#[from] StateError),
}

/// How much of the user a key knows, from most to least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// The user's group and recent categories.
    Key,
    /// The group and one recent category.
    OneRecent,
    /// The group.
    Group,
    /// Nothing.
    Default,
}

impl Rung {
    /// Its name in documents.
    pub fn word(self) -> &'static str {
        match self {
            Rung::Key => "key",
            Rung::OneRecent => "one_recent",
            Rung::Group => "group",
            Rung::Default => "default",
        }
    }
}

/// A category of an answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Served {
    /// Its name.
    pub category: String,
    /// Its relevance.
    pub score: f64,
    /// Whether the user's whole history holds it.
    pub seen: bool,
}

/// What a lookup prints.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// The user.
    pub user: Json,
    /// The codes of the user's vector.
    pub csid: Vec<u64>,
    /// The user's group.
    pub group: String,
    /// The user's recent categories.
    pub recent: Vec<String>,
    /// The key that answered: `group:hash`.
    pub key: String,
    /// Its rung.
    pub rung: Rung,
    /// Whether the user has no group yet.
    pub cold_start: bool,
    /// What is served, best first.
    pub categories: Vec<Served>,
    /// Name → digest of the models behind it.
    pub model_versions: BTreeMap<String, String>,
}

/// A key that was tried.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// Its rung.
    pub rung: Rung,
    /// The key.
    pub key: Row,
    /// Whether the store has an entry for it.
    pub found: bool,
    /// Every category of the entry.
    pub listed: Vec<Served>,
    /// How many of them may be served to this user.
    pub left: usize,
}

/// An answer, and how it came about.
pub struct Found {
    /// What is served.
    pub answer: Answer,
    /// The user's key in the tables.
    pub user: Row,
    /// Whether the user has a history.
    pub known: bool,
    /// The keys tried, in order.
    pub attempts: Vec<Attempt>,
    /// The attempt that answered.
    pub chosen: usize,
}

/// `group:hash`
pub fn key_text(key: &Row) -> String {
    key.iter().map(Value::to_string).collect::<Vec<_>>().join(":")
}

/// A user's id as a key of the tables.
///
/// # Errors
/// If the text is not of the key column's type.
pub fn user_key(id: &str, key: &[Column]) -> Result<Row, LookupError> {
    let [column] = key else { return Err(LookupError::WideKey(key.len())) };
    let value = match column.ty {
        Type::U64 => id.parse().ok().map(Value::U64),
        Type::I64 | Type::Timestamp => id.parse().ok().map(Value::I64),
        Type::F64 => id.parse().ok().map(Value::float),
        Type::Bool => id.parse().ok().map(Value::Bool),
        Type::Text => Some(Value::text(id)),
        Type::Bytes | Type::List(_) | Type::Tuple(_) => None,
    };
    let (name, ty) = (column.name.clone(), column.ty.to_string());
    value.map(|value| Row::from([value])).ok_or_else(|| LookupError::NoUser {
        id: id.to_string(),
        column: name,
        ty,
    })
}

/// The keys to try, most telling first; a user without a group has only the default.
fn ladder(group: Option<&Value>, recent: &[Value], fallbacks: &[Fallback]) -> Vec<(Rung, Row)> {
    let nothing = Value::list([]);
    let default = (Rung::Default, store_key(&Value::text(DEFAULT_GROUP), &nothing));
    let Some(group) = group else { return vec![default] };
    let mut rungs = Vec::new();
    if !recent.is_empty() {
        rungs.push((Rung::Key, store_key(group, &Value::list(recent.iter().cloned()))));
    }
    for fallback in fallbacks {
        match fallback {
            // With one recent category this is the user's own key.
            Fallback::OneRecent if recent.len() < 2 => {}
            Fallback::OneRecent => {
                let single = |one: &Value| (Rung::OneRecent, store_key(group, &Value::list([one.clone()])));
                rungs.extend(recent.iter().map(single));
            }
            Fallback::Group => rungs.push((Rung::Group, store_key(group, &nothing))),
            Fallback::Default => rungs.push(default.clone()),
        }
    }
    if rungs.is_empty() {
        rungs.push((Rung::Group, store_key(group, &nothing)));
    }
    rungs
}

/// The first attempt with `enough` left, else the fullest; of equals the first.
fn choose(left: &[usize], enough: usize) -> usize {
    let most = left.iter().max().copied().unwrap_or(0);
    let least = enough.min(most);
    left.iter().position(|n| *n >= least).unwrap_or(0)
}

/// The (category, score) cells of an entry, marked with what the user has seen.
fn listed(cell: Option<&Value>, seen: &BTreeSet<String>) -> Vec<Served> {
    let pair = |cell: &Value| {
        let [category, score] = cell.as_list()? else { return None };
        let category = category.as_text()?.to_string();
        Some(Served { seen: seen.contains(&category), category, score: score.as_f64()? })
    };
    cell.and_then(Value::as_list).unwrap_or_default().iter().filter_map(pair).collect()
}

/// Whether a category may be served.
pub fn may_serve(served: &Served, novel_to: NovelTo) -> bool {
    match novel_to {
        NovelTo::History => !served.seen,
        NovelTo::ShortTerm => true,
    }
}

/// The texts of a list cell.
pub fn texts(cell: Option<&Value>) -> Vec<String> {
    let cells = cell.and_then(Value::as_list).unwrap_or_default();
    cells.iter().map(Value::to_string).collect()
}

/// Every category of a user's whole history, and whether there is a history.
fn history(view: &View, places: &Places<'_>, user: &Row) -> Result<(BTreeSet<String>, bool), StateError> {
    let Some(events) = places.events else { return Ok((BTreeSet::new(), false)) };
    let (mut items, mut known) = (BTreeSet::new(), false);
    view.walk(events, user, &mut |event, _| {
        known = true;
        items.extend(places.item.and_then(|at| event.get(at)).cloned());
        true
    })?;
    let mut seen = BTreeSet::new();
    if let Some(labels) = places.labels {
        let column = labels.schema.column("categories").map_or(0, |(at, _)| at);
        for item in items {
            let row = view.row(&labels.name, &Row::from([item]))?;
            seen.extend(texts(row.as_ref().and_then(|row| row.get(column))));
        }
    }
    Ok((seen, known))
}

/// Answers a user, given by the text of their id.
///
/// # Errors
/// If the id is not of the users' type, or the state cannot be read. An unknown user is no error:
/// the default rung answers.
pub fn lookup(view: &View, places: &Places<'_>, id: &str) -> Result<Found, LookupError> {
    let user = user_key(id, &places.groups.0.schema.key)?;
    let (seen, known) = history(view, places, &user)?;
    let grouped = view.row(&places.groups.0.name, &user)?;
    let group = grouped.as_ref().and_then(|row| row.get(places.groups.1));
    let recent = view.row(&places.recents.0.name, &user)?;
    let recent = recent.as_ref().and_then(|row| row.get(places.recents.1));
    let cells = recent.and_then(Value::as_list).unwrap_or_default();
    let kv = &places.sink.kv;
    let enough = usize::try_from(kv.enough).unwrap_or(usize::MAX);
    let mut attempts: Vec<Attempt> = Vec::new();
    for (rung, key) in ladder(group, cells, &kv.fallbacks) {
        let entry = view.row(&places.entries.name, &key)?;
        let listed = listed(entry.as_ref().and_then(|row| row.get(places.categories)), &seen);
        let left = listed.iter().filter(|served| may_serve(served, kv.novel_to)).count();
        attempts.push(Attempt { rung, key, found: entry.is_some(), listed, left });
        if left >= enough {
            break;
        }
    }
    let chosen = choose(&attempts.iter().map(|a| a.left).collect::<Vec<_>>(), enough);
    // A ladder has at least one rung.
    let attempt = &attempts[chosen];
    let servable = attempt.listed.iter().filter(|served| may_serve(served, kv.novel_to));
    let csid = grouped.as_ref().and_then(|row| row.get(places.csid?)).and_then(Value::as_list);
    let answer = Answer {
        user: user[0].to_json(),
        csid: csid.unwrap_or_default().iter().filter_map(Value::as_u64).collect(),
        group: group.map_or_else(|| DEFAULT_GROUP.to_string(), Value::to_string),
        recent: texts(recent),
        key: key_text(&attempt.key),
        rung: attempt.rung,
        cold_start: group.is_none(),
        categories: servable.take(usize::try_from(kv.serve).unwrap_or(usize::MAX)).cloned().collect(),
        model_versions: view.model_versions(places.entries),
    };
    Ok(Found { answer, user, known, attempts, chosen })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rungs(group: Option<&str>, recent: &[&str], fallbacks: &[Fallback]) -> String {
        let group = group.map(Value::text);
        let recent: Vec<Value> = recent.iter().map(Value::text).collect();
        let ladder = ladder(group.as_ref(), &recent, fallbacks);
        let shown = |(rung, key): &(Rung, Row)| format!("{} {}", rung.word(), key[0]);
        ladder.iter().map(shown).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn the_ladder_goes_from_the_own_key_to_the_default() {
        use Fallback::{Default, Group, OneRecent};
        let all = [OneRecent, Group, Default];
        assert_eq!(
            rungs(Some("g1"), &["War", "Drama"], &all),
            "key g1, one_recent g1, one_recent g1, group g1, default default"
        );
        assert_eq!(rungs(Some("g1"), &["War"], &all), "key g1, group g1, default default");
        assert_eq!(rungs(Some("g1"), &[], &[Default]), "default default");
        assert_eq!(rungs(Some("g1"), &[], &[]), "group g1");
        assert_eq!(rungs(None, &["War"], &all), "default default");
    }

    #[test]
    fn an_own_key_is_that_of_the_prompt_builder() {
        let (group, recent) = (Value::text("g1"), [Value::text("War")]);
        let ladder = ladder(Some(&group), &recent, &[]);
        assert_eq!(ladder, [(Rung::Key, store_key(&group, &Value::list(recent)))]);
        assert!(key_text(&ladder[0].1).starts_with("g1:"));
    }

    #[test]
    fn the_first_rung_with_enough_answers_else_the_fullest() {
        assert_eq!(choose(&[1, 3, 9], 3), 1);
        assert_eq!(choose(&[1, 2, 2], 3), 1);
        assert_eq!(choose(&[0, 0], 3), 0);
        assert_eq!(choose(&[0, 4], 0), 0);
    }

    #[test]
    fn what_the_history_holds_is_seen_and_not_served() {
        let pair = |name: &str, score| Value::list([Value::text(name), Value::float(score)]);
        let cell = Value::list([pair("War", 0.9), pair("Drama", 0.8), Value::Null]);
        let listed = listed(Some(&cell), &["War".to_string()].into());
        assert_eq!(listed.iter().map(|s| s.seen).collect::<Vec<_>>(), [true, false]);
        let left = |to| listed.iter().filter(|s| may_serve(s, to)).count();
        assert_eq!((left(NovelTo::History), left(NovelTo::ShortTerm)), (1, 2));
    }

    #[test]
    fn users_are_read_by_the_type_of_their_column() {
        let key = |ty| [Column::new("user_id", ty)];
        assert_eq!(user_key("7", &key(Type::U64)).unwrap(), Row::from([Value::U64(7)]));
        assert_eq!(user_key("7", &key(Type::Text)).unwrap(), Row::from([Value::text("7")]));
        let error = user_key("x", &key(Type::U64)).unwrap_err().to_string();
        assert_eq!(error, "`x` is no user: user_id is of type u64");
        assert!(matches!(user_key("7", &[]), Err(LookupError::WideKey(0))));
    }

    #[test]
    fn answers_print_in_the_order_of_the_contract() {
        let answer = Answer {
            user: Json::from(7),
            csid: vec![1, 2],
            group: "g001".into(),
            recent: vec!["War".into()],
            key: "g001:ab".into(),
            rung: Rung::OneRecent,
            cold_start: false,
            categories: vec![Served { category: "Drama".into(), score: 0.5, seen: false }],
            model_versions: [("novelty".to_string(), "b1".to_string())].into(),
        };
        assert_eq!(
            serde_json::to_string(&answer).unwrap(),
            concat!(
                r#"{"user":7,"csid":[1,2],"group":"g001","recent":["War"],"key":"g001:ab","#,
                r#""rung":"one_recent","cold_start":false,"#,
                r#""categories":[{"category":"Drama","score":0.5,"seen":false}],"#,
                r#""model_versions":{"novelty":"b1"}}"#
            )
        );
    }
}
