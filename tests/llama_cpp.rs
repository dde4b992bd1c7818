//! Models on a real server: llama.cpp, as the Python package `xllamacpp` brings it, with the same
//! file as the embedded model. So the two can be compared number by number.
//!
//! Needs Python 3 with pip; the package is installed once into a folder of the build. A machine
//! that cannot have it fails these tests, so that a green run means they were met.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::OnceLock,
};

use coea_engine::{
    fetch,
    models::{ModelProvider, RealModels},
    remote::{Remote, settings::Settings},
};
use coea_operators::language_model::{LanguageModel, Writing, gather};
use serde_json::Value as Json;

const PACKAGE: &str = "xllamacpp==2026.10.11549";
const MODEL: &str = "smollm2-135m-instruct";
const BINARY: &str = env!("CARGO_BIN_EXE_coea-engine");

/// Python with the package.
fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("llama-cpp");
        let python = folder.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
        if !folder.join("installed").is_file() {
            let _ = fs::remove_dir_all(&folder);
            succeed(Command::new("python3").args(["-m", "venv"]).arg(&folder));
            let pip =
                ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"];
            succeed(Command::new(&python).args(pip).arg(PACKAGE));
            fs::write(folder.join("installed"), PACKAGE).unwrap();
        }
        python
    })
}

fn succeed(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// A server that ends with its value. One thread: two that wait for each other are slower than one
/// where other tests run beside them.
struct Server {
    child: Child,
    base: String,
}

impl Server {
    fn start() -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/llama_server.py");
        let model = fetch::model(MODEL).unwrap().path;
        let mut command = Command::new(python());
        command.arg(script).arg(model).args(["0", "2", "1"]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut address = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
        assert!(address.starts_with("http://127.0.0.1:"), "the server did not start: {address:?}");
        Server { child, base: format!("{}/v1", address.trim()) }
    }

    fn model(&self, with: &str) -> Remote {
        let settings: Settings = serde_json::from_str(&format!("{{\"model\":\"{MODEL}\",{with}}}")).unwrap();
        Remote::new(&self.base, settings, None).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn score(model: &dyn LanguageModel, labels: &[String], prompts: &[String]) -> Vec<Vec<f32>> {
    let (scores, _) = gather(prompts.len(), |answered| model.score(labels, prompts, answered)).unwrap();
    scores.into_iter().map(Result::unwrap).collect()
}

/// Labels and prompts as the pipeline has them.
fn questions() -> (Vec<String>, Vec<String>) {
    let labels = ["Action", "Children's", "Comedy", "Comedy, Drama", "Film-Noir", "Sci-Fi", "Sci-Fi, War"];
    let user = |liked: &str, lately: &str| {
        format!(
            "<|im_start|>user\nA viewer likes {liked} and lately saw {lately} films. Which genre is new and \
             fitting?<|im_end|>\n<|im_start|>assistant\n"
        )
    };
    let prompts = [("Drama", "War"), ("Comedy and Romance", "Crime"), ("Horror", "Thriller")];
    (labels.map(str::to_string).to_vec(), prompts.map(|(a, b)| user(a, b)).to_vec())
}

/// The largest and the mean difference of two tables of numbers.
fn apart(a: &[Vec<f32>], b: &[Vec<f32>]) -> (f32, f32) {
    let all: Vec<f32> = a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).collect();
    (all.iter().copied().fold(0.0, f32::max), all.iter().sum::<f32>() / all.len() as f32)
}

#[test]
fn labels_are_scored_as_the_embedded_model_scores_them() {
    let server = Server::start();
    let (labels, prompts) = questions();
    let embedded = score(&*RealModels::default().language(MODEL).unwrap(), &labels, &prompts);
    let forced = score(&server.model("\"scoring\":\"forced\""), &labels, &prompts);
    let listed = score(&server.model("\"scoring\":\"forced\",\"top\":2000"), &labels, &prompts);
    // Five megabytes for each position: for one prompt only.
    let steps = score(&server.model("\"scoring\":\"steps\",\"top\":49152"), &labels, &prompts[..1]);
    let few = score(&server.model("\"scoring\":\"steps\",\"top\":100"), &labels, &prompts[..1]);
    println!("forced and embedded: {:?}", apart(&forced, &embedded));
    println!("forced by ones and by lists: {:?}", apart(&forced, &listed));
    println!("forced and steps: {:?}", apart(&forced, &steps));
    println!("steps of 100 and all: {:?}", apart(&few, &steps));
    // The server multiplies quantised weights with quantised activations, the engine in f32.
    let (most, mean) = apart(&forced, &embedded);
    assert!(most < 1.0 && mean < 0.3, "{forced:?}\n{embedded:?}");
    assert!(apart(&forced, &listed).0 < 0.02, "{forced:?}\n{listed:?}");
    // Steps add what other ways to tokenise a label have, which is little.
    let more: Vec<f32> = steps[0].iter().zip(&forced[0]).map(|(steps, forced)| steps - forced).collect();
    assert!(more.iter().all(|more| (-0.02..0.5).contains(more)), "{steps:?}\n{forced:?}");
    assert!(few[0].iter().zip(&steps[0]).all(|(bound, exact)| *bound > exact - 0.02), "{few:?}\n{steps:?}");
}

#[test]
fn texts_and_draws_come_from_both_interfaces() {
    let server = Server::start();
    let prompts = vec![questions().1[0].clone()];
    let how = Writing {
        max_tokens: 24,
        temperature: 0.0,
        top_p: 1.0,
        repetition_penalty: 1.0,
        stop: Vec::new(),
        seed: 7,
        schema: None,
    };
    let write = |model: &Remote, how: &Writing| {
        let (texts, cost) = gather(1, |answered| model.write(how, &prompts, answered)).unwrap();
        (texts[0].clone().unwrap(), cost)
    };
    let (completions, chat) = (server.model("\"api\":\"completions\""), server.model("\"api\":\"chat\""));
    for model in [&completions, &chat] {
        let (text, cost) = write(model, &how);
        assert!(text.text.len() > 10 && text.tokens > 3 && cost.prompt_tokens > 20, "{text:?} {cost:?}");
        let stopped = Writing { stop: vec![" ".to_string()], ..how.clone() };
        let (first, _) = write(model, &stopped);
        assert!(text.text.starts_with(&first.text) && !first.text.contains(' '), "{first:?} {text:?}");
        let schema = serde_json::json!({ "type": "string", "enum": ["Western", "War"] });
        let (json, _) = write(model, &Writing { schema: Some(schema.into()), ..how.clone() });
        assert!(["\"Western\"", "\"War\""].contains(&json.text.trim()), "{json:?}");
        let penalised = Writing { repetition_penalty: 1.9, max_tokens: 60, ..how.clone() };
        assert_ne!(
            write(model, &penalised).0.text,
            write(model, &Writing { max_tokens: 60, ..how.clone() }).0.text
        );
    }
    let labels = ["Western", "War", "Comedy"].map(str::to_string);
    let drawn = server.model("\"api\":\"chat\",\"draws\":12,\"constrain\":true");
    let first = score(&drawn, &labels, &prompts);
    let mass: f32 = first[0].iter().map(|logprob| logprob.exp()).sum();
    assert!((mass - 1.0).abs() < 1e-5, "{first:?}");
}

#[test]
fn a_reduced_pipeline_runs_on_the_server_and_again_for_nothing() {
    let server = Server::start();
    let place = tempfile::tempdir().unwrap();
    let base = |model: &str| format!("models.{model}.base={}", server.base);
    let run = |command: &str| -> Json {
        let mut process = Command::new(BINARY);
        let pipeline = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/movielens-100k-remote.yaml");
        process.arg(command).arg(pipeline).args(["--format", "json", "--state"]).arg(place.path());
        for set in [
            "params.groups=2",
            "params.recent=1",
            "params.short=1",
            "nodes.label.with.min_clicks=8000",
            "nodes.embedding.with.layers=1",
            "nodes.embedding.with.dim=16",
            "nodes.embedding.with.max_epochs=1",
            "nodes.group.with.epochs=2",
            &base("novelty"),
            &base("relevance"),
        ] {
            process.arg("--set").arg(set);
        }
        serde_json::from_slice(&succeed(&mut process).stdout).unwrap()
    };
    let first = run("run");
    let number = |report: &Json, name: &str| report["inference"][name].as_u64().unwrap();
    println!("{}", first["inference"]);
    assert!(number(&first, "calls") > 10 && number(&first, "requests") > 100);
    assert!(first["nodes"].as_array().unwrap().iter().all(|node| node["errors"] == 0));
    assert!(first["sinks"][0]["puts"].as_u64().unwrap() > 10);
    assert_eq!(number(&run("run"), "calls"), 0);
}
