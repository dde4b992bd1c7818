"""The llama.cpp server on loopback, for tests: prints its address, ends with its standard input.

usage: llama_server.py MODEL.gguf [PORT [SLOTS [THREADS [STEP]]]]

Port 0 takes a free one. A slot is a request under way with a context of 2048 tokens of its own;
prompts that begin alike share what a slot computed. A pass reads at most STEP tokens; with one at a
time an answer has the same bits whatever else is asked and whatever a slot held before, which it has
not otherwise, and texts are read about three times as slowly. Needs `pip install xllamacpp`.
"""

import os
import sys

import xllamacpp


def main(model, port=0, slots=2, threads=2, step=512):
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames = ["127.0.0.1"]
    params.port = int(port)
    params.n_parallel = int(slots)
    params.n_ctx = 2048 * int(slots)
    params.cpuparams.n_threads = int(threads)
    params.cpuparams_batch.n_threads = int(threads)
    params.n_ubatch = int(step)
    params.kv_unified = False
    params.warmup = False
    # Prompts that left their slot are not kept beside it: a run has no use for them, and they would
    # grow to gigabytes.
    params.cache_ram_mib = 0
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    # The server has no orderly end that could be waited for.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
