"""Small random models in the forms they are published in, and what `transformers` answers to them.

usage: transformers_vectors.py [FOLDER]        (default: operators/lm/fixtures)

Writes one folder per model, each with `expected.json`: token ids, rendered conversations,
log-probabilities and greedy continuations; and some of the models as GGUF beside it, laid out as
llama.cpp's converter does. The files are checked in; tests only read them, so
nothing but this script needs Python. Weights, merges and answers follow from the seeds below: on
one machine two runs write the same bytes. What is checked in was written with

    python 3.11, torch 2.15.0, transformers 5.23.0, tokenizers 0.23.3, numpy 2.4.6, gguf 0.19.0

Answers are computed in f64 from the files that were written, not from the objects in memory, so
they are those of the published form. Two ways of publishing are taken: by hand, as models of
2023 to 2025 lie on the hub (`rope_theta`, `rope_scaling`, `torch_dtype`, the template in
`tokenizer_config.json`), and by `save_pretrained` of this version (`rope_parameters`, `dtype`,
`chat_template.jinja`).

A GGUF is read back by `transformers` too, which must find the weights it was made of.
"""

import json
import os
import shutil
import sys

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

import gguf
import numpy
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
transformers.logging.set_verbosity_error()

# Merges must exist wherever a wrong splitting of the text would let them apply or keep them from it.
SENTENCES = [
    "Which films, 1984? It's the year 1984; we're in 2019 and they'll see 1999 films.",
    "I'd say: don't, won't, CAN'T — they've it. A film's a film's a film.\n\nThe end.\n\n",
    "Drama, Sci-Fi, Film-Noir. The Drama of the War: 12,345 films in 2019, 3.14 in 1999.",
    "  two spaces   three    four\n\n\n  indented\n\tcode()\r\n",
    "日本の映画 日本の 映画 e\u0301te\u0301 été naïve 🎬🎬 films",
]

TRICKY = [
    "It's 1984 and they'LL see 12345 films, 3.14 each",
    "I'm you're he'd we've DON'T 's 'tis it'tis IT'TIS ''",
    "a\n\nb\n \n\n  c\r\n\r\n\td\n",
    "  two   three    four     \n   five ",
    "日本の映画、七人の侍（1954）。中文 한국어",
    "🎬👩‍👩‍👧 films 🇩🇪 ☕️",
    "e\u0301te\u0301 was été; ﬁlm Å Å ½ ² ٣٤٥",
    "x=f(a)+b[10]; // #!?...—“quoted” <tag/> |pipe|",
    "\u00a0nbsp\u2003em\u200bzero\u2028line\u0000nul",
    "Sci-Fi/Film-Noir's the_end__ 007 1e-5 0x1F",
    "1234567890 12 345 6789 1,000,000 ²³ Ⅳ",
    "<|eot_id|>x<|im_end|> <|im_start|>user\n</s><｜User｜><|unknown|> <| eot_id|>",
    "",
    " ",
]

CONVERSATIONS = [
    [
        {"role": "system", "content": "Name one genre, it's 1984."},
        {"role": "user", "content": "Which films in 2019?\n\nDrama, War: 12345!"},
    ],
    [{"role": "user", "content": "日本の映画  or 🎬? Don't say \"the\"; {{ x }} <b>&amp;</b>"}],
    [
        {"role": "system", "content": "Brief."},
        {"role": "user", "content": "The film's year?\n  - 1999\n  - 2019"},
        {"role": "assistant", "content": "</think>It's 1999."},
        {"role": "user", "content": "And the other films of the War?"},
    ],
]

LABELS = ["Drama", "War", "Sci-Fi", "Film-Noir", "The Drama", "1984", "映画"]

# Templates in the manner of the published ones: what they call and how they trim is theirs.
LLAMA_31 = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{#- The first turn may be the system's #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" + tools | tojson(indent=4) }}
{%- endif %}
{{- "Known until: December 2023\\n" }}
{{- "Today: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}

{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- else %}
        {{- raise_exception("no tools here") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

LLAMA_30 = (
    "{% if tools is not none or documents is not none %}{{ '# Tools' }}{% endif %}"
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)

ZEPHYR = """{% for message in messages %}
    {% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
    {% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

CHATML = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}{{- "# Tools" }}{{- '<|im_end|>\\n' }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

THINKING = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(is_first=false, is_tool=false, system_prompt='') %}"
    "{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}"
    "{{bos_token}}{{ns.system_prompt}}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<｜User｜>' + message['content'].strip()}}{%- endif %}"
    "{%- if message['role'] == 'assistant' and message['content'] is not none %}"
    "{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}"
    "{%- endfor -%}"
    "{% if ns.is_tool %}{{'<｜tool▁outputs▁end｜>'}}{% endif %}"
    "{% if add_generation_prompt and not ns.is_tool %}{{'<｜Assistant｜>'}}{% endif %}"
)

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def words(digits):
    split = pre_tokenizers.Split(Regex(WORDS.replace("DIGITS", digits)), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


# How the tokenizers of three families split text.
FAMILIES = {
    "llama-bpe": dict(split=lambda: words(r"\p{N}{1,3}"), normalizer=None, whole=True, never=[("'t", "i"), ("T", "I")]),
    "qwen2": dict(split=lambda: words(r"\p{N}"), normalizer=normalizers.NFC(), whole=False, never=[("'t", "i"), ("T", "I"), ("1", "9")]),
    "smollm": dict(
        split=lambda: pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
        normalizer=None,
        whole=False,
        never=[("1", "9")],
    ),
}

LLAMA_MARKERS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]

LLAMA = dict(
    architectures=["LlamaForCausalLM"], model_type="llama", attention_bias=False, attention_dropout=0.0,
    hidden_act="silu", hidden_size=24, intermediate_size=40, initializer_range=0.02,
    max_position_embeddings=512, mlp_bias=False, num_attention_heads=4, num_hidden_layers=2,
    num_key_value_heads=2, pretraining_tp=1, rms_norm_eps=1e-05, rope_scaling=None, rope_theta=500000.0,
    use_cache=True, transformers_version="4.43.0",
)  # fmt: skip

QWEN = dict(
    architectures=["Qwen2ForCausalLM"], model_type="qwen2", attention_dropout=0.0, hidden_act="silu",
    hidden_size=32, intermediate_size=40, initializer_range=0.02, max_position_embeddings=512,
    max_window_layers=2, num_attention_heads=4, num_hidden_layers=2, num_key_value_heads=2,
    rms_norm_eps=1e-06, rope_theta=1000000.0, sliding_window=512, use_cache=True,
    use_sliding_window=False, transformers_version="4.43.1",
)  # fmt: skip

MODELS = {
    "llama3": dict(
        seed=1, family="llama-bpe", markers=LLAMA_MARKERS + ["<|eom_id|>"], bos=0, ends=[4, 1, 5],
        template=LLAMA_31, tokenizer_class="PreTrainedTokenizerFast", dtype=torch.bfloat16, published="by hand",
        config=LLAMA | dict(
            head_dim=8, tie_word_embeddings=False, num_hidden_layers=3,
            rope_scaling=dict(factor=8.0, high_freq_factor=4.0, low_freq_factor=1.0,
                              original_max_position_embeddings=512, rope_type="llama3"),
        ),
    ),
    "llama": dict(
        seed=2, family="smollm", markers=["<s>", "</s>", "<|done|>"], bos=0, ends=[1, 2], template=ZEPHYR,
        tokenizer_class="PreTrainedTokenizerFast", dtype=torch.float32, published="by transformers",
        config=LLAMA | dict(tie_word_embeddings=True, rope_theta=10000.0, num_key_value_heads=1),
    ),
    "llama-bias": dict(
        seed=3, family="llama-bpe", markers=LLAMA_MARKERS, bos=0, ends=[4, 1], template=LLAMA_30,
        tokenizer_class="PreTrainedTokenizerFast", dtype=torch.float16, published="by hand",
        config=LLAMA | dict(attention_bias=True, tie_word_embeddings=True, rms_norm_eps=1e-2),
    ),
    "qwen2": dict(
        seed=4, family="qwen2", markers=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], bos=None,
        ends=[2, 0], template=CHATML, tokenizer_class="Qwen2Tokenizer", dtype=torch.bfloat16,
        published="by hand", config=QWEN | dict(tie_word_embeddings=True),
    ),
    "qwen2-untied": dict(
        seed=5, family="qwen2", markers=["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<|endoftext|>"],
        bos=0, ends=[1, 4], template=THINKING, tokenizer_class="PreTrainedTokenizerFast", dtype=torch.bfloat16,
        published="by transformers", config=QWEN | dict(tie_word_embeddings=False, rope_theta=10000.0),
    ),
}  # fmt: skip

GGUFS = ["llama3", "llama-bias", "qwen2"]

TOKENS = 290  # of the vocabulary, without markers
ROWS = 300  # of the embeddings: past the vocabulary they are padding


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=None if "tokenizer.json" in path else 1)
        file.write("\n")


def tokenizer_of(model):
    """A byte-level tokenizer trained on the sentences, its control tokens at the end."""
    family = FAMILIES[model["family"]]
    tokenizer = Tokenizer(models.BPE(ignore_merges=family["whole"]))
    if family["normalizer"] is not None:
        tokenizer.normalizer = family["normalizer"]
    tokenizer.pre_tokenizer = family["split"]()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    assert tokenizer.get_vocab_size() == TOKENS
    state = json.loads(tokenizer.to_str())
    vocab, merges = state["model"]["vocab"], state["model"]["merges"]
    # The last merges make room for some that a right splitting of the text never lets apply.
    for left, right in family["never"]:
        lost = merges.pop(-len(family["never"]))
        vocab[left + right] = vocab.pop("".join(lost))
        merges.append([left, right])
    if family["whole"]:
        # A word that is a token and that no merge leads to.
        merges.remove(["Ġfilm", "s"])
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_special_tokens([AddedToken(marker, normalized=False, special=True) for marker in model["markers"]])
    if model["bos"] is not None:
        # As published: who asks for special tokens gets one more than the template writes.
        bos = model["markers"][model["bos"]]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos}:0 $A:0", pair=f"{bos}:0 $A:0 {bos}:1 $B:1", special_tokens=[(bos, TOKENS + model["bos"])]
        )
    return tokenizer


def weights_of(model, config):
    """Weights that make a sharp model: attention that looks somewhere, margins that can be told."""
    noise = torch.Generator().manual_seed(model["seed"])
    weights = {}
    shapes = AutoModelForCausalLM.from_config(config).state_dict()
    for name in sorted(shapes):
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        shape = shapes[name].shape
        values = torch.randn(shape, generator=noise, dtype=torch.float64)
        if "norm" in name:
            values = 1.0 + 0.3 * values
        elif name.endswith("bias"):
            values = 0.7 * values
        elif "embed" in name:
            values = 0.6 * values
        else:
            values = values * {"lm_head": 2.0}.get(name.split(".")[0], 1.5) / shape[-1] ** 0.5
        weights[name] = values.to(model["dtype"]).contiguous()
    return weights


def write_model(folder, model):
    os.makedirs(folder)
    ids = [TOKENS + end for end in model["ends"]]
    bos = None if model["bos"] is None else TOKENS + model["bos"]
    config = model["config"] | dict(
        vocab_size=ROWS, bos_token_id=bos, eos_token_id=ids if len(ids) > 1 else ids[0],
        torch_dtype=str(model["dtype"]).removeprefix("torch."),
    )  # fmt: skip
    write_json(f"{folder}/config.json", config)
    write_json(f"{folder}/generation_config.json", dict(bos_token_id=bos, eos_token_id=ids))
    tokenizer_of(model).save(f"{folder}/tokenizer.json", pretty=False)
    name = lambda id: None if id is None else model["markers"][id]
    write_json(
        f"{folder}/tokenizer_config.json",
        dict(
            bos_token=name(model["bos"]), eos_token=name(model["ends"][0]), clean_up_tokenization_spaces=False,
            tokenizer_class=model["tokenizer_class"], chat_template=model["template"],
        ),
    )  # fmt: skip
    weights = weights_of(model, AutoConfig.from_pretrained(folder))
    save_file(weights, f"{folder}/model.safetensors", metadata={"format": "pt"})
    if model["published"] == "by transformers":
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=model["dtype"])
        tokenizer = AutoTokenizer.from_pretrained(folder)
        shutil.rmtree(folder)
        loaded.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def rope_factors(config):
    """By what the frequencies of Llama 3.1 are divided, from those of the other implementation."""
    network = AutoModelForCausalLM.from_config(config)
    plain = config.rope_parameters["rope_theta"] ** (torch.arange(0, config.head_dim, 2).float() / config.head_dim)
    return (1.0 / (plain * network.model.rotary_emb.inv_freq)).numpy()


def interleaved(rows, heads):
    """Rows of queries or keys in the order of llama files, where rotation pairs neighbours."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write_gguf(folder, model):
    config = AutoConfig.from_pretrained(folder)
    arch = config.model_type
    path = f"{folder}.gguf"
    out = gguf.GGUFWriter(path, arch)
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_rope_freq_base(config.rope_parameters["rope_theta"])
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    if arch == "llama":
        for add in (out.add_key_length, out.add_value_length, out.add_rope_dimension_count):
            add(config.head_dim)
    state = json.loads(open(f"{folder}/tokenizer.json", encoding="utf-8").read())
    vocab = sorted(state["model"]["vocab"], key=state["model"]["vocab"].get) + model["markers"]
    kinds = [gguf.TokenType.NORMAL] * TOKENS + [gguf.TokenType.CONTROL] * len(model["markers"])
    padding = range(len(vocab), ROWS)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(model["family"])
    out.add_token_list(vocab + [f"[PAD{i}]" for i in padding])
    out.add_token_types(kinds + [gguf.TokenType.UNUSED] * len(padding))
    out.add_token_merges([" ".join(merge) for merge in state["model"]["merges"]])
    if model["bos"] is not None:
        out.add_bos_token_id(TOKENS + model["bos"])
    out.add_eos_token_id(TOKENS + model["ends"][0])
    out.add_chat_template(model["template"])
    if config.rope_parameters["rope_type"] == "llama3":
        out.add_tensor("rope_freqs.weight", rope_factors(config))
    kind = {torch.bfloat16: gguf.GGMLQuantizationType.BF16, torch.float16: gguf.GGMLQuantizationType.F16}
    kind = kind[model["dtype"]]
    originals = {}
    with safe_open(f"{folder}/model.safetensors", "pt") as file:
        for name in sorted(file.keys()):
            values = file.get_tensor(name).float().numpy()
            originals[name] = values
            heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
            part = name.split(".")[-2].removesuffix("_proj")
            if arch == "llama" and part in heads:
                values = interleaved(values, heads[part])
            for theirs, ours in GGUF_NAMES.items():
                name = name.replace(theirs, ours)
            if values.ndim == 1:
                out.add_tensor(name, values)
            else:
                out.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    root, file = os.path.split(path)
    again = AutoModelForCausalLM.from_pretrained(root, gguf_file=file, dtype=torch.float32).state_dict()
    for name, values in originals.items():
        if not (arch == "llama" and name.endswith("bias")):  # of which that reader keeps the order of the file
            assert numpy.array_equal(again[name].numpy(), values), name


def chatml(conversation):
    turns = [f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in conversation]
    return "".join(turns) + "<|im_start|>assistant\n"


def rounded(values):
    return [round(float(value), 6) for value in values]


@torch.no_grad()
def log_probs(network, ids):
    """Log-probabilities of every token after each of the ids."""
    return torch.log_softmax(network(torch.tensor([ids])).logits[0], dim=-1)


@torch.no_grad()
def continuation(network, tokenizer, model, ids):
    """The most probable continuation, without control tokens that end nothing and without padding."""
    ends = [TOKENS + end for end in model["ends"]]
    never = [TOKENS + i for i in range(ROWS - TOKENS) if TOKENS + i not in ends]
    out = network.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
        max_new_tokens=24, suppress_tokens=never, eos_token_id=ends, pad_token_id=ends[0],
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    new = out.sequences[0, len(ids) :].tolist()
    best = [scores[0].topk(2).values for scores in out.scores]
    ended = new[-1] in ends
    return dict(
        ids=new[: len(new) - ended], finished=ended, margin=round(min(float(a - b) for a, b in best), 4)
    )


def expected(folder, model):
    """What the other implementation answers, from the files."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    raw = Tokenizer.from_file(f"{folder}/tokenizer.json")
    encode = lambda text, **how: tokenizer.encode(text, add_special_tokens=False, **how)
    tokens = []
    for text in TRICKY:
        ids, plain = encode(text), encode(text, split_special_tokens=True)
        assert ids == raw.encode(text, add_special_tokens=False).ids, text
        tokens.append(dict(text=text, ids=ids, plain=plain))
    end = TOKENS + model["ends"][0]
    chats = []
    for conversation in CONVERSATIONS:
        ours = chatml(conversation)
        rendered = tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=True, date_string="26 Jul 2024"
        )
        # A model that reads ChatML is given it as it stands, and no system turn it does not have.
        asked = ours if "<|im_start|>" in model["markers"] else rendered
        ids = encode(asked)
        labels = []
        for label in LABELS:
            answer = encode(label, split_special_tokens=True)
            assert encode(asked + label) == ids + answer, "labels do not merge with what is before"
            answer = answer + [end]
            after = log_probs(network, ids + answer)
            labels.append(sum(after[len(ids) - 1 + i, token] for i, token in enumerate(answer)))
        chats.append(
            dict(
                chatml=ours, rendered=rendered, asked=asked, ids=ids, next=rounded(log_probs(network, ids)[-1]),
                labels=rounded(labels), greedy=continuation(network, tokenizer, model, ids),
            )
        )  # fmt: skip
    ends = sorted(TOKENS + at for at in model["ends"])
    return dict(end=end, ends=ends, tokens=tokens, labels=LABELS, chats=chats)


def main(root):
    for name, model in MODELS.items():
        folder = f"{root}/{name}"
        shutil.rmtree(folder, ignore_errors=True)
        write_model(folder, model)
        if name in GGUFS:
            write_gguf(folder, model)
        answers = expected(folder, model)
        with open(f"{folder}/expected.json", "w", encoding="utf-8") as file:
            json.dump(answers, file, ensure_ascii=False, separators=(",", ":"))
            file.write("\n")
        greedy = [chat["greedy"] for chat in answers["chats"]]
        print(name, [(len(g["ids"]), g["finished"], g["margin"]) for g in greedy])


if __name__ == "__main__":
    default = os.path.join(os.path.dirname(__file__), "../../operators/lm/fixtures")
    main(sys.argv[1] if len(sys.argv) > 1 else default)
