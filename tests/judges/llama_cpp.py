"""llama.cpp's answers about a model in a GGUF file: {"path", and what is wanted of "losses": [ids, losses expected about, of
every how many one], "goes_on": [ids, count], "texts": [...], "messages": [...]} on standard input.

Needs xllamacpp, whose server tells the probability of a token that it might choose. Each token of a text is made about as likely
as all others together by a bias, so that it is told with all its digits; then the bias is taken out.
"""

import json
import math
import sys
import urllib.request

import xllamacpp

CHOICES = 20  # tokens whose probabilities are told


def serve(path, context):
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = path, context, 1, False
    params.cpuparams.n_threads = 2
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    return xllamacpp.Server(params)


def loss(server, before, token, expected):
    """The loss of a token after these."""
    bias = expected
    for seed in range(100):
        how = {"max_tokens": 1, "temperature": 1.0, "samplers": [], "cache_prompt": True, "seed": seed}
        told = {"n_probs": CHOICES, "post_sampling_probs": True, "logit_bias": [[token, bias]]}
        found = server.handle_completions({"prompt": before} | how | told)["choices"][0]["logprobs"]
        if not found:  # it chose to end, and tells nothing: it has half a chance to do otherwise
            continue
        chance = {entry["id"]: entry["prob"] for entry in found["content"][0]["top_probs"]}.get(token, 0.0)
        if 0 < chance < 1:
            return math.log1p(math.exp(bias) * (1 - chance) / chance)
        bias += 5 if chance == 0 else -5
    raise ValueError(f"llama.cpp never tells how likely {token} is after {before[-10:]}")


def goes_on(server, ids, count):
    """The ids of a greedy continuation."""
    asked = {"prompt": ids, "max_tokens": count, "temperature": 0, "n_probs": 1, "ignore_eos": True}
    return [entry["id"] for entry in server.handle_completions(asked)["choices"][0]["logprobs"]["content"]]


def post(server, path, request):
    data, head = json.dumps(request).encode(), {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(server.listening_address + path, data, head), timeout=60) as answer:
        return json.load(answer)


def ids_of(server, text, special):
    return post(server, "/tokenize", {"content": text, "add_special": False, "parse_special": special})["tokens"]


def main():
    request, answer = json.load(sys.stdin), {}
    server = serve(request["path"], request.get("context", 4096))
    if "losses" in request:
        ids, expected, every = request["losses"]
        answer["losses"] = [loss(server, ids[:at], ids[at], expected[at - 1]) for at in range(every, len(ids), every)]
    if "goes_on" in request:
        answer["goes_on"] = goes_on(server, *request["goes_on"])
    if "texts" in request:
        answer["ids"] = [ids_of(server, text, False) for text in request["texts"]]
    if "messages" in request:
        prompt = post(server, "/apply-template", {"messages": request["messages"]})["prompt"]
        answer["chat"] = ids_of(server, prompt, True)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
