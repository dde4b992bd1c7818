//! Portraits of groups in the words of a language model (CoEA eq. 7).
//!
//! The model is told the figures that the fixed wording is made of and nothing else: no name of a
//! user or an item reaches it. What it writes becomes part of prompts, so it is made harmless like
//! any text from data; and where it writes nothing, the fixed wording stays.

use std::{ops::ControlFlow, path::Path};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    chat::chat_safe,
    language_model::Writing,
    operator::{Inputs, Problem},
    served::Served,
    shape::{CallError, LeafId, Loaded, Progress},
    taste::{Facts, Favourite},
    template::Template,
    writing::WritingParameters,
};

/// What a model writes about a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// A text.
    #[default]
    Text,
    /// Up to five tags of at most 16 characters, written as a JSON list.
    Tags,
}

/// Tags of a portrait, at most, and the characters of one (SERAL 3.1).
const TAGS: (usize, usize) = (5, 16);
/// Characters of a portrait, and of a name told to the model, at most.
const LIMITS: (usize, usize) = (400, 120);

/// Writes portraits.
pub(crate) struct PortraitWriter {
    model: Served,
    template: Template,
    digest: String,
    format: Format,
    how: Writing,
}

impl PortraitWriter {
    /// Reads the template and checks the parameters; what is left to name is the model.
    ///
    /// # Errors
    /// If the template cannot be read or knows other names, or a parameter makes no sense.
    pub(crate) fn prepare(
        inputs: &Inputs<'_>,
        path: &Path,
        format: Format,
        writing: &WritingParameters,
    ) -> Result<impl FnOnce(Served) -> Self + use<>, Problem> {
        let tag = json!({ "type": "string", "maxLength": TAGS.1 });
        let tags = json!({ "type": "array", "items": tag, "minItems": 1, "maxItems": TAGS.0 });
        let how = writing.writing("writing", (format == Format::Tags).then_some(&tags))?;
        let template = Template::read(inputs, "template", path)?;
        let some = Favourite { name: String::new(), percent: 0, usual: 0 };
        prompt(&template, "", &Facts { members: 0, favourites: vec![some] }).map_err(|error| {
            Problem::with("template", format!("{}: {error}", path.display())).help(
                "a template sees `group`, `members` and `favourites`, a list with `name`, `percent` and `usual`",
            )
        })?;
        let digest = inputs.files.borrow().get(path).cloned().unwrap_or_default();
        Ok(move |model| PortraitWriter { model, template, digest, format, how })
    }

    /// Everything beside the figures that decides a portrait.
    pub(crate) fn logic(&self) -> String {
        // A plain struct of numbers and texts always has a JSON form.
        let how = serde_json::to_string(&self.how).unwrap_or_default();
        format!("{} {} {:?} {how}", self.model.base().digest(), self.digest, self.format)
    }

    /// What [`PortraitWriter::write`] needs: the version of its model.
    pub(crate) fn artifacts(&self) -> Vec<LeafId> {
        self.model.artifacts(&[])
    }

    /// A portrait of each group; nothing for a group of which nothing is known, or of which the model
    /// wrote nothing.
    ///
    /// # Errors
    /// If the model cannot be had, or fails at one of them.
    pub(crate) fn write(
        &self,
        artifacts: &[Loaded],
        groups: &[(&str, &Facts)],
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Vec<Option<String>>, CallError> {
        let known: Vec<usize> = (0..groups.len()).filter(|at| !groups[*at].1.favourites.is_empty()).collect();
        let prompts = known.iter().map(|at| prompt(&self.template, groups[*at].0, groups[*at].1));
        let prompts = prompts.collect::<Result<Vec<String>, _>>()?;
        let mut texts: Vec<Option<String>> = vec![None; groups.len()];
        let mut written = vec![];
        self.model.model(artifacts)?.write(&self.how, &prompts, &mut |at, text| {
            written.push((known[at], text));
            ControlFlow::Continue(())
        })?;
        progress(Progress { done: written.len() as u64, total: known.len() as u64, note: "portraits" });
        for (at, text) in written {
            let text = text.map_err(|cause| format!("the portrait of {}: {cause}", groups[at].0))?;
            texts[at] = self.portrait(&text.text);
        }
        Ok(texts)
    }

    /// What is kept of a text.
    fn portrait(&self, text: &str) -> Option<String> {
        let text = match self.format {
            Format::Text => text.to_string(),
            Format::Tags => {
                let tags: Vec<String> = serde_json::from_str(text).unwrap_or_default();
                let tags: Vec<String> = tags.iter().map(|tag| chat_safe(tag, TAGS.1)).collect();
                tags.into_iter().filter(|tag| !tag.is_empty()).collect::<Vec<_>>().join(", ")
            }
        };
        let text = chat_safe(&text, LIMITS.0);
        // A portrait stands before a full stop.
        let text = text.trim_end_matches('.').trim();
        (!text.is_empty()).then(|| text.to_string())
    }
}

fn prompt(template: &Template, group: &str, facts: &Facts) -> Result<String, String> {
    let favourite = |f: &Favourite| json!({ "name": chat_safe(&f.name, LIMITS.1), "percent": f.percent, "usual": f.usual });
    let favourites: Vec<_> = facts.favourites.iter().map(favourite).collect();
    template.render(&json!({ "group": group, "members": facts.members, "favourites": favourites }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::testing::Echo;

    fn writer(template: &str, format: Format) -> PortraitWriter {
        let template = Template::compile(template.to_string()).unwrap();
        let (digest, how) = (String::new(), Writing::default());
        PortraitWriter { model: Served::new(Arc::new(Echo), None), template, digest, format, how }
    }

    fn group(names: &[&str]) -> Facts {
        let favourite = |name: &&str| Favourite { name: name.to_string(), percent: 40, usual: 8 };
        Facts { members: 3, favourites: names.iter().map(favourite).collect() }
    }

    #[test]
    fn a_portrait_is_made_of_the_figures_and_harmless() {
        let told = writer(
            "{{ group }}: {% for f in favourites %}{{ f.name }} {{ f.percent }}/{{ f.usual }} {% endfor %}.",
            Format::Text,
        );
        let groups = [group(&["War<|im_end|>", "Drama\n"]), group(&[])];
        let texts = told.write(&[], &[("g1", &groups[0]), ("g2", &groups[1])], &mut |_| ()).unwrap();
        assert_eq!(texts, [Some("g1: War 40/8 Drama 40/8".to_string()), None]);
    }

    #[test]
    fn tags_are_read_from_their_list() {
        let tags = |text: &str| writer("", Format::Tags).portrait(text);
        let expected = Some("war films, two lines, abcdefghijklmnop".to_string());
        assert_eq!(tags(r#"["war films", "<|im_end|>", "two\nlines", "abcdefghijklmnopq"]"#), expected);
        assert_eq!(tags("no list"), None);
        assert_eq!(writer("", Format::Text).portrait(" \n."), None);
    }
}
