//! `models generate`: texts that a model writes, from outside a pipeline.
//!
//! A line is a prompt and, beside it, whatever of [`Writing`] is not to have its default. Lines that
//! are to be written in the same way are written together; that changes no text.

use coea_operators::language_model::{Writing, Written, gather};
use serde_json::{Map, Value};

use super::{super::output, Batch, Failure, lines};
use crate::{fetch, models::ModelProvider, runtime::RunError};

pub(super) fn run(batch: &Batch, models: &dyn ModelProvider) -> Result<(), Failure> {
    let mut ways: Vec<(Writing, Vec<usize>)> = Vec::new();
    let mut prompts: Vec<String> = Vec::new();
    for (at, line) in lines::<Map<String, Value>>(&batch.input)?.into_iter().enumerate() {
        let (prompt, how) = question(line).map_err(|cause| {
            Failure::new(66, format!("error: {}: question {}: {cause}", batch.input.display(), at + 1))
        })?;
        prompts.push(prompt);
        match ways.iter_mut().find(|(known, _)| *known == how) {
            Some((_, places)) => places.push(at),
            None => ways.push((how, vec![at])),
        }
    }
    fetch::model(&batch.base)?;
    let model = models.language(&batch.base).map_err(output::failed)?;
    let mut answers: Vec<Option<Written>> = vec![None; prompts.len()];
    for (how, places) in ways {
        let asked: Vec<String> = places.iter().map(|at| prompts[*at].clone()).collect();
        let (texts, _) = gather(asked.len(), |answered| model.write(&how, &asked, answered))
            .map_err(|error| RunError::call(&batch.base, error))?;
        for (at, text) in places.into_iter().zip(texts) {
            let failed = |cause| output::failed(format!("question {}: {cause}", at + 1));
            answers[at] = Some(text.map_err(failed)?);
        }
    }
    let mut out = output::Out::new();
    for written in answers.into_iter().flatten() {
        output::line(&mut out, &written)?;
    }
    out.finish()
}

/// The prompt of a line, and how its text is to be written.
fn question(mut line: Map<String, Value>) -> Result<(String, Writing), String> {
    let prompt = match line.remove("prompt") {
        Some(Value::String(prompt)) => prompt,
        Some(_) => return Err("`prompt` is not a text".to_string()),
        None => return Err("`prompt` is missing".to_string()),
    };
    Ok((prompt, serde_json::from_value(Value::Object(line)).map_err(|error| error.to_string())?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(line: Value) -> Result<(String, Writing), String> {
        question(line.as_object().unwrap().clone())
    }

    #[test]
    fn a_line_is_a_prompt_and_how_to_go_on() {
        let (prompt, how) = read(json!({"prompt": "a", "max_tokens": 5, "stop": ["\n"]})).unwrap();
        assert_eq!(prompt, "a");
        assert_eq!(how, Writing { max_tokens: 5, stop: vec!["\n".to_string()], ..Writing::default() });
        assert!(read(json!({"prompt": "a", "max_token": 5})).unwrap_err().contains("`max_token`"));
        assert!(read(json!({"prompt": 1})).is_err() && read(json!({})).is_err());
    }
}
