"""Writes smollm2.json: what transformers makes of SmolLM2-135M-Instruct.Q4_1.gguf, in float32: the loss on a text, and the ids of
conversations. python tests/golden/make_smollm2.py FILE

Needs transformers, torch and gguf (made with 5.24.0, 2.13.0 and 0.19.0). The text is the beginning of the stories that ship.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gpt2c.data import read_shard
from gpt2c.tokenizers.tokenizer import Tokenizer

TOKENS = 2001
DATA = Path(__file__).parents[2] / "data"
TURNS = (("user", "What is the capital of France?"), ("assistant", "Paris, of course."), ("user", "  and\tItaly? é日🙂\n"))


def conversations():
    messages = [{"role": role, "content": content} for role, content in TURNS]
    system = {"role": "system", "content": "Be brief."}
    return [(talk, prompt) for talk in (messages[:1], messages, [system, *messages], messages[:2]) for prompt in (True, False)]


def main(path):
    where = dict(pretrained_model_name_or_path=str(path.parent), gguf_file=path.name)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    stories = read_shard(DATA / "stories_val.bin").tokens[: 4 * TOKENS].tolist()
    text = Tokenizer.load(DATA / "stories_tokenizer.bin").decode(stories).replace("<|endoftext|>", "\n\n").strip()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][:TOKENS]
    text = tokenizer.decode(ids)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)(torch.tensor([ids])).logits[0, :-1]
    loss = torch.nn.functional.cross_entropy(logits.double(), torch.tensor(ids[1:])).item()
    chats = [
        {
            "messages": talk,
            "prompt": prompt,
            "ids": tokenizer.apply_chat_template(talk, add_generation_prompt=prompt)["input_ids"],
        }
        for talk, prompt in conversations()
    ]
    document = {"text": text, "ids": ids, "loss": loss, "chats": chats}
    Path(__file__).with_name("smollm2.json").write_text(json.dumps(document, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
