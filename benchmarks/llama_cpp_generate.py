"""llama.cpp's side of gpt2c bench generate: a workload for each line of standard input, its seconds for an answer.

    python llama_cpp_generate.py FILE THREADS '{"NAME": [[ids of the prompt], tokens to decode behind it, or 0], ...}'

Needs xllamacpp. Reading a prompt is timed where nothing is decoded; else its part that was read before is in the cache.
"""

import json
import os
import sys

import xllamacpp


def serve(path, threads, works):
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # llama.cpp may say something there
    params = xllamacpp.CommonParams()
    params.model.path, params.n_parallel, params.verbosity = path, 1, -1
    params.n_ctx = 32 + max(len(prompt) + new for prompt, new in works.values())
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    for line in sys.stdin:
        prompt, new = works[line.strip()]
        asked = {"prompt": prompt, "n_predict": new or 1, "temperature": 0, "ignore_eos": True, "cache_prompt": new > 0}
        times = server.handle_completions(asked)["timings"]
        count, milliseconds = ("predicted_n", "predicted_ms") if new else ("prompt_n", "prompt_ms")
        assert times[count] == (new or len(prompt)), times
        print(times[milliseconds] / 1e3, file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))
