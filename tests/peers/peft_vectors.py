"""Adapters that `peft` wrote for the small random models, and what it answers with them.

usage: peft_vectors.py [FOLDER]        (default: operators/lm/fixtures)
       peft_vectors.py MODEL ADAPTER   log-probabilities with an adapter somebody else wrote: reads
                                       {"prompt", "labels"} as JSON lines, writes {"logprobs"}

The first writes `adapters/NAME` beside the models of `transformers_vectors.py`, in the layout in
which `peft` saves, with `expected.json`. The files are checked in; tests only read them. The second
is for looking by hand at what `coea-engine models export` wrote. Written with

    python 3.11, torch 2.15.0, transformers 5.23.0, peft 0.21.2
"""

import json
import os
import shutil
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# What is read: all there is, and parts of it.
ADAPTERS = {
    "all": dict(model="llama", r=3, lora_alpha=5, target_modules=ALL, lora_dropout=0.1),
    "biased": dict(model="qwen2-untied", r=2, lora_alpha=4, target_modules=ALL),
    "top": dict(model="llama", r=4, lora_alpha=8, target_modules=ALL, layers_to_transform=[1], layers_pattern="layers"),
    "attention": dict(model="qwen2", r=2, lora_alpha=3, target_modules=["q_proj", "v_proj"], use_rslora=True),
}


def rounded(values):
    return [round(float(value), 6) for value in values]


@torch.no_grad()
def label_log_probs(network, ids, answers):
    """The log-probability of each answer after the ids, each a list of ids."""
    found = []
    for answer in answers:
        logits = network(torch.tensor([ids + answer])).logits[0]
        after = torch.log_softmax(logits.double(), dim=-1)
        found.append(sum(after[len(ids) - 1 + i, token] for i, token in enumerate(answer)))
    return found


def write(root, name, model, **settings):
    folder = f"{root}/adapters/{name}"
    shutil.rmtree(folder, ignore_errors=True)
    base = AutoModelForCausalLM.from_pretrained(f"{root}/{model}", dtype=torch.float64, attn_implementation="eager")
    torch.manual_seed(len(name))
    network = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    for key, weight in network.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(weight, std=0.4)
    network.float().save_pretrained(folder)
    os.remove(f"{folder}/README.md")
    # The numbers that were written, not those in memory.
    base = AutoModelForCausalLM.from_pretrained(f"{root}/{model}", dtype=torch.float64, attn_implementation="eager")
    network = PeftModel.from_pretrained(base, folder).double().eval()
    config = json.load(open(f"{folder}/adapter_config.json"))
    # A path of this machine is nobody's business.
    config["base_model_name_or_path"] = model
    config["target_modules"].sort()
    json.dump(config, open(f"{folder}/adapter_config.json", "w"), indent=2, sort_keys=True)
    os.chmod(f"{folder}/adapter_model.safetensors", 0o644)
    told = json.load(open(f"{root}/{model}/expected.json"))
    tokenizer = AutoTokenizer.from_pretrained(f"{root}/{model}")
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    answers = [encode(label) + [told["end"]] for label in told["labels"]]
    chats = [rounded(label_log_probs(network, chat["ids"], answers)) for chat in told["chats"]]
    moved = max(abs(a - b) for chat, own in zip(told["chats"], chats) for a, b in zip(chat["labels"], own))
    with open(f"{folder}/expected.json", "w", encoding="utf-8") as file:
        json.dump(dict(model=model, labels=chats), file)
        file.write("\n")
    print(name, "moves a label by", round(moved, 3))


def ask(model, adapter):
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    network = PeftModel.from_pretrained(base, adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    encode = lambda text, plain: tokenizer.encode(text, add_special_tokens=False, split_special_tokens=plain)
    for line in sys.stdin:
        question = json.loads(line)
        answers = [encode(label, True) + [tokenizer.eos_token_id] for label in question["labels"]]
        found = label_log_probs(network, encode(question["prompt"], False), answers)
        print(json.dumps(dict(logprobs=rounded(found))), flush=True)


def main(*args):
    if len(args) == 2:
        return ask(*args)
    root = args[0] if args else os.path.join(os.path.dirname(__file__), "../../operators/lm/fixtures")
    for name, settings in ADAPTERS.items():
        write(root, name, **settings)


if __name__ == "__main__":
    main(*sys.argv[1:])
