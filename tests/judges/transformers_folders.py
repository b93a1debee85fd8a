"""transformers' answers about folders of models: {"folders": [...], "tokens": [[...], ...], "prompt": [...]} on standard input.

The logits of the tokens go into FOLDER.npy; the model as transformers writes it, in several files, into FOLDER.again. The answer
is {folder: the 20 likeliest tokens that follow the prompt one after the other}.
"""

import json
import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM


def judged(folder, tokens, prompt):
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    with torch.no_grad():
        np.save(folder + ".npy", model.eval()(torch.tensor(tokens)).logits.numpy())
    ids = model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=None)
    model.save_pretrained(folder + ".again", max_shard_size="10KB")
    return ids[0, len(prompt) :].tolist()


request = json.load(sys.stdin)
print(json.dumps({folder: judged(folder, request["tokens"], request["prompt"]) for folder in request["folders"]}))
