"""The steps of `cargo bench --bench training` in PyTorch, for comparison.

    cargo bench --bench training -- --write-job job.json
    python3 -m venv venv && venv/bin/pip install torch transformers peft gguf
    venv/bin/python benches/peers/pytorch_lora.py MODEL.gguf job.json [--threads 2]

Weights are f32 and frozen, adapters those of PEFT on all linear modules. Logits are made only where the
label's tokens are predicted, which is the best that can be done there.
"""

import argparse
import json
import os
import resource
import statistics
import time

import peft
import torch
import transformers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("job")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder, file = os.path.split(os.path.abspath(args.model))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    with open(args.job, encoding="utf-8") as handle:
        job = json.load(handle)
    config = peft.LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = peft.get_peft_model(model, config)
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    label = encode(job["label"]) + [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    tokens = torch.tensor([encode(prompt) + label for prompt in job["prompts"]])
    optimiser = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.01)
    seconds = []
    for _ in range(job["steps"]):
        began = time.perf_counter()
        logits = tuned(input_ids=tokens[:, :-1], use_cache=False, logits_to_keep=len(label)).logits
        logs = torch.log_softmax(logits, -1).gather(-1, tokens[:, -len(label) :, None])
        loss = -logs.sum() / len(tokens)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        seconds.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    figures = {"seconds_per_step": statistics.median(seconds), "loss": loss.item(), "peak_mib": peak}
    print(json.dumps({"pytorch": torch.__version__, **figures, "rows": tokens[:, :-1].numel()}, indent=2))


if __name__ == "__main__":
    main()
