"""A conversation with a model: earlier turns, as many as fit in its context, and the answer as it is generated. What the model
has read of it in an earlier turn it need not read again."""

import sys

from gpt2c.errors import InputError, UsageError
from gpt2c.generation.sampling import Sampling, pieces
from gpt2c.generation.slots import Slots
from gpt2c.support.rng import Xorshift
from gpt2c.tokenizers.turns import has_own_template, stops

LONGEST = 8192  # tokens of a conversation, where the model takes more and nobody asks for them


class Conversation:
    """Earlier turns, and the model that answers. `turns`: how many it sees at a time (0: as many as in its training data, or as
    fit in its context). `system`: what it is told before all of them. `context`: tokens of all that it sees (0: as many as it
    takes, at most LONGEST)."""

    def __init__(self, model, tokenizer, how: Sampling, max_new_tokens=256, turns=0, system="", context=0, kv=""):
        if isinstance(how.seed, str):
            raise UsageError(f"--seed is {how.seed!r}, expected a whole number")
        self.model, self.tokenizer, self.how, self.max_new_tokens = model, tokenizer, how, max_new_tokens
        self.answers = bool(tokenizer.chat_template)
        self.turns = turns or model.turns or sys.maxsize
        self._rng = Xorshift(how.seed)
        self._slots = Slots(model, context=context or (LONGEST if not model.definition.state else None), kv=kv)
        self._system = [{"role": "system", "content": system}] if system else []
        self._past: list[list[dict[str, str]]] = []  # each question with its answer

    def answer(self, text):
        """Streams the answer. If the caller stops early, the part so far is kept in the conversation."""
        if not self.answers:
            yield from self._pieces(self.tokenizer.encode(text, bos=self.tokenizer.adds_bos), self.max_new_tokens)
            return
        context = self._slots.context
        room = min(self.max_new_tokens, context // 2)
        asked, said = {"role": "user", "content": text}, []
        past = self._past[max(0, len(self._past) - self.turns + 1) :]
        while len(prompt := self._ids(past, asked)) + room > context and past:
            past = past[1:]
        if len(prompt) + room > context and has_own_template(self.tokenizer):  # whose beginning cannot be missing
            raise InputError(
                f"with the system prompt it has {len(prompt):,} tokens, and the context of {context:,} leaves {context - room:,} "
                f"of them beside an answer of {room:,}: ask for less, or for a shorter answer (--max-new-tokens)"
            )
        self._past, prompt = past, prompt[room - context :]
        try:
            for piece in self._pieces(prompt, min(self.max_new_tokens, context - len(prompt)), stops(self.tokenizer)):
                said.append(piece if said else piece.lstrip())
                yield said[-1]
        finally:
            self._past.append([asked, {"role": "assistant", "content": "".join(said)}])

    def _ids(self, past, asked):
        return self.tokenizer.chat([*self._system, *(message for turn in past for message in turn), asked])

    def _pieces(self, prompt, most, stop=()):
        if not prompt:
            raise InputError("none of this is in the model's vocabulary")
        ends = self.tokenizer.ends
        return pieces(self.model, self.tokenizer, prompt, most, self.how, self._rng, ends, stop, slots=self._slots)
