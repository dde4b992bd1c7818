"""The prompts of `cargo bench --bench language_model` read by PyTorch in f32, for comparison.

    cargo bench --bench language_model -- --write-job job.json
    python3 -m venv venv && venv/bin/pip install torch transformers gguf
    venv/bin/python benches/peers/pytorch.py MODEL.gguf job.json [--threads 2]

Weights are dequantised to f32 when the model is loaded. Texts go in batches, cut to one length so that
no row is padding, and logits are made for the last position of each only: the best that a user of
transformers gets here.
"""

import argparse
import json
import os
import statistics
import time

import torch
import transformers


def prefill(model, tokens, batch):
    """Tokens a second over prompts that share nothing."""
    began = time.perf_counter()
    with torch.inference_mode():
        for first in range(0, len(tokens), batch):
            model(input_ids=tokens[first : first + batch], use_cache=False, logits_to_keep=1)
    return tokens.numel() / (time.perf_counter() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("job")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder, file = os.path.split(os.path.abspath(args.model))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
    with open(args.job, encoding="utf-8") as handle:
        job = json.load(handle)
    figures = {}
    for size, texts in job["prefill"].items():
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        tokens = torch.tensor([row[: min(map(len, ids))] for row in ids])
        prefill(model, tokens[:1], 1)
        # The best of a few sizes of batch, each the median of some rounds.
        rates = [
            statistics.median(prefill(model, tokens, batch) for _ in range(args.rounds))
            for batch in (1, 4, len(texts))
        ]
        figures[f"prefill_{size}_tokens_per_second"] = max(rates)
    print(json.dumps({"pytorch": torch.__version__, **figures, "threads": args.threads}, indent=2))


if __name__ == "__main__":
    main()
