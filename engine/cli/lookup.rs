//! `lookup`: what serving would answer, from the same code.

use coea_operators::row::{Row, Value};

use super::{Common, Failure, Format, Loaded, dump::entry, output};
use crate::serve::{Found, Places, Relation, View, lookup};

/// What serving would answer.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Flags of every command.
    #[command(flatten)]
    pub common: Common,
    /// The user who asks.
    #[arg(long, value_name = "ID", required_unless_present = "key", conflicts_with = "key")]
    pub user: Option<String>,
    /// An entry of the store, by its key.
    #[arg(long, value_name = "GROUP:HASH")]
    pub key: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// If the id is not of the users' type, there is no such entry, or nothing was run yet.
pub fn run(args: &Args) -> Result<(), Failure> {
    let view = output::open(&args.common)?;
    let plan = view.plan.clone();
    let places = Places::find(&plan)?;
    if let Some(key) = &args.key {
        return by_key(&view, &places, key);
    }
    let found = lookup(&view, &places, args.user.as_deref().unwrap_or_default())?;
    note_unknown(&found, &args.common);
    match args.common.format {
        Format::Json => output::document(&found.answer),
        Format::Text => output::text(&shown(&found)),
    }
}

/// What a few users would be answered, for a person who has just run a pipeline; nothing where it
/// serves no lookups.
pub fn samples(loaded: &Loaded, users: usize) -> String {
    let looked_up = || -> Result<String, Failure> {
        let view = View::open(loaded.plan.clone(), &loaded.state_dir)?;
        let places = Places::find(&loaded.plan)?;
        let Some(relation) = Relation::find(&loaded.plan, &places.groups.0.name) else {
            return Ok(String::new());
        };
        let mut ids: Vec<String> = Vec::new();
        view.for_each(relation, &mut |row| {
            if ids.len() < users {
                ids.extend(row.first().map(Value::to_string));
            }
        })?;
        ids.iter().map(|id| Ok(format!("\n{}", shown(&lookup(&view, &places, id)?)))).collect()
    };
    looked_up().unwrap_or_default()
}

/// Tells a person that the answer is not about the user they asked for.
pub fn note_unknown(found: &Found, common: &Common) {
    if common.quiet || !found.answer.cold_start {
        return;
    }
    let what = if found.known { "has no group yet" } else { "is not known" };
    eprintln!("note: user {} {what}; the default answers", found.user[0]);
}

/// Prints one entry of the store, in both formats as the document `dump` prints.
fn by_key(view: &View, places: &Places<'_>, text: &str) -> Result<(), Failure> {
    let (group, hash) = text
        .rsplit_once(':')
        .ok_or_else(|| output::usage(format!("`{text}` is no key; a key is GROUP:HASH")))?;
    let key = Row::from([Value::text(group), Value::text(hash)]);
    let row = view
        .row(&places.entries.name, &key)?
        .ok_or_else(|| output::failed(format!("the store has no entry `{text}`")))?;
    output::document(&entry(view, places.entries, &key, &row))
}

fn shown(found: &Found) -> String {
    let answer = &found.answer;
    let recent = if answer.recent.is_empty() { "none".to_string() } else { answer.recent.join(", ") };
    let cold = if answer.cold_start { ", cold start" } else { "" };
    let mut text = format!(
        "user {} in group {}{cold}, recent: {recent}\nkey {} (rung {})\n",
        found.user[0],
        answer.group,
        answer.key,
        answer.rung.word()
    );
    if answer.categories.is_empty() {
        return text + "nothing to serve\n";
    }
    let rows = answer.categories.iter().map(|served| {
        let seen = if served.seen { "seen" } else { "" };
        vec![format!("  {:.3}", served.score), served.category.clone(), seen.to_string()]
    });
    text += &output::columns(&rows.collect::<Vec<_>>());
    text
}
