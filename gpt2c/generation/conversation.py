"""A conversation with a model: earlier turns, as many as fit in its context, and the answer as it is generated."""

from gpt2c.errors import InputError, UsageError
from gpt2c.generation.sampling import Sampling, pieces
from gpt2c.models.family import max_seq_len
from gpt2c.support.rng import Xorshift
from gpt2c.tokenizers.turns import NAMES, question


class Conversation:
    """Earlier turns, and the model that answers. `turns`: how many it sees at a time (0: as many as in its training data)."""

    def __init__(self, model, tokenizer, how: Sampling, max_new_tokens=256, turns=0):
        if isinstance(how.seed, str):
            raise UsageError(f"--seed is {how.seed!r}, expected a whole number")
        self.model, self.tokenizer, self.how, self.max_new_tokens = model, tokenizer, how, max_new_tokens
        self.turns = turns or model.turns or 1
        self._rng = Xorshift(how.seed)
        self._past: list[list[int]] = []  # the ids of each question with its answer

    def answer(self, text):
        """Streams the answer. If the caller stops early, the part so far is kept in the conversation."""
        if not self.model.turns:
            yield from self._pieces(self.tokenizer.encode(text), self.max_new_tokens)
            return
        context = max_seq_len(self.model.config)
        room = min(self.max_new_tokens, context // 2)
        self._past = self._past[max(0, len(self._past) - self.turns + 1) :] if self.turns > 1 else []
        asked = self._ids(question(text, not self._past))[room - context :]
        while self._past and sum(map(len, self._past)) + len(asked) + room > context:
            self._past.pop(0)
            asked = self._ids(question(text, not self._past))[room - context :]
        prompt, said = [id for turn in self._past for id in turn] + asked, []
        try:
            for piece in self._pieces(prompt, min(self.max_new_tokens, context - len(prompt)), [f" {NAMES['user']}"]):
                said.append(piece if said else piece.lstrip())
                yield said[-1]
        finally:
            end = [] if self.tokenizer.eot is None else [self.tokenizer.eot]
            self._past.append(asked + self._ids(f" {''.join(said)}") + end)

    def _ids(self, text):
        return self.tokenizer.encode(text)

    def _pieces(self, prompt, most, stop=()):
        if not prompt:
            raise InputError("none of this is in the model's vocabulary")
        return pieces(self.model, self.tokenizer, prompt, most, self.how, self._rng, self.tokenizer.ends, stop)
