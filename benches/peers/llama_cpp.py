"""The job of `cargo bench --bench language_model` on llama.cpp, for comparison.

    cargo bench --bench language_model -- --write-job job.json
    python3 -m venv venv && venv/bin/pip install xllamacpp
    venv/bin/python benches/peers/llama_cpp.py MODEL.gguf job.json [--threads 2]

The keys of the job want distinct candidates out of a closed set. llama.cpp has no such call, so the
script does what a user would: draws labels under a grammar, with the labels drawn so far taken out of
it, and the server's prompt cache on. That is its best setting here, and still not the distribution of
the labels: a grammar renormalises at every token. Decoding is timed as one stream.
"""

import argparse
import json
import statistics
import time

import xllamacpp


def server(model, threads, context):
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx = context
    params.n_batch = 2048
    params.n_ubatch = 512
    params.n_parallel = 1
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.n_gpu_layers = 0
    return xllamacpp.Server(params)


def complete(server, **request):
    answer = server.handle_completions({"temperature": 1.0, **request})
    if isinstance(answer, (str, bytes)):
        answer = json.loads(answer)
    if "error" in answer:
        raise SystemExit(f"llama.cpp: {answer['error']}")
    return answer


def grammar(labels):
    return "root ::= " + " | ".join(json.dumps(label) for label in labels)


def keys(server, job):
    """Seconds for the distinct candidates of every key."""
    began = time.perf_counter()
    for at, prompt in enumerate(job["prompts"]):
        left = list(job["labels"])
        for draw in range(job["candidates"]):
            answer = complete(
                server, prompt=prompt, grammar=grammar(left), max_tokens=16, cache_prompt=True, seed=1000 * at + draw
            )
            text = answer["choices"][0]["text"].strip()
            if text in left:
                left.remove(text)
    return time.perf_counter() - began


def prefill(server, texts):
    """Tokens a second over prompts that share nothing."""
    began, tokens = time.perf_counter(), 0
    for text in texts:
        answer = complete(server, prompt=text, max_tokens=1, cache_prompt=False)
        tokens += answer["usage"]["prompt_tokens"]
    return tokens / (time.perf_counter() - began)


def decode(server, prompt, tokens):
    """Tokens a second of one text, prefill left out."""
    began = time.perf_counter()
    complete(server, prompt=prompt, max_tokens=1, cache_prompt=False, ignore_eos=True)
    first = time.perf_counter() - began
    began = time.perf_counter()
    complete(server, prompt=prompt, max_tokens=tokens + 1, cache_prompt=False, ignore_eos=True)
    return tokens / (time.perf_counter() - began - first)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("job")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with open(args.job, encoding="utf-8") as file:
        job = json.load(file)
    llama = server(args.model, args.threads, 2048)
    complete(llama, prompt=job["prompts"][0], max_tokens=1)
    median = lambda measure: statistics.median(measure() for _ in range(args.rounds))
    figures = {
        f"prefill_{size}_tokens_per_second": median(lambda: prefill(llama, texts))
        for size, texts in job["prefill"].items()
    }
    figures["decode_tokens_per_second"] = median(lambda: decode(llama, job["prompts"][0], 128))
    figures["keys_per_second"] = len(job["prompts"]) / keys(llama, job)
    print(json.dumps({"llama.cpp": figures, "threads": args.threads}, indent=2))


if __name__ == "__main__":
    main()
