"""Text generation for programs: the sampling flags, and the text as a stream."""

from dataclasses import dataclass

from gpt2c.errors import UsageError
from gpt2c.generation.beam import beam_search
from gpt2c.generation.decoder import generate
from gpt2c.generation.slots import PIECE
from gpt2c.support.choice import CHOICE, check_choice
from gpt2c.support.fields import Layer, flag, require_at_least
from gpt2c.support.rng import checked_seed


@dataclass
class Sampling:
    temperature: float = flag(
        0.8, "sampling temperature (0: greedy, always the most likely token; higher: more varied)", "--temp", group="sampling"
    )
    top_k: int = flag(0, "top-k sampling: choose among the k most likely tokens (0: off)")
    top_p: float = flag(
        1.0, "top-p (nucleus) sampling: choose among the most likely tokens whose probabilities add up to p (1: off)"
    )
    min_p: float = flag(
        0.0, "min-p sampling: drop tokens whose probability is below this fraction of the most likely one's (0: off)"
    )
    repetition_penalty: float = flag(
        1.0,
        "repetition penalty: above 1, tokens of the prompt and of the text so far become less likely (1: off)",
        "--repeat-penalty",
    )
    seed: int | str = flag(1337, "random seed of sampling: the same seed gives the same text", metavar="N")
    stop: list[str] = flag((), "stop sequence: end the text before this string")
    speculate: int = flag(
        0,
        "prompt lookup: guess up to this many tokens from where the text had the same ones before, and read them together; the "
        "text is the same, and sooner there where it repeats itself (0: off)",
    )
    beams: int = flag(0, "beam search with this many beams, instead of sampling (0: sampling)", "--beam-width")
    length_penalty: float = flag(
        1.0,
        "beam search: length penalty, the power of the length that log probabilities are divided by (0 "
        "prefers short texts, 1 compares the mean per token)",
    )

    def __post_init__(self):
        check_choice(**{name: getattr(self, name) for name in CHOICE})
        require_at_least(self, speculate=0, beams=0, length_penalty=0)
        if not isinstance(self.seed, str):  # which a former program has as its prompt
            checked_seed(self.seed, least=1)


def layers(model, answers=""):
    """What goes before the defaults of a Sampling for this model, the weakest first. `answers`: by what it is to answer in a
    conversation, which it does greedily unless it says itself what is best; "": it is not."""
    found = [Layer(f"the family {model.family}", dict(model.definition.generation))]
    found += [Layer(answers, {"temperature": 0.0})] if answers else []
    whole = {"top_k": int(model.sampling["top_k"])} if "top_k" in model.sampling else {}
    return [layer for layer in (*found, Layer("the model", model.sampling | whole)) if layer.values]


def usual(model, answers=""):
    """The Sampling of these layers alone."""
    found = {name: value for layer in layers(model, answers) for name, value in layer.values.items()}
    return Sampling(**{name: value for name, value in found.items() if name in CHOICE})


def pieces(
    model, tokenizer, prompt_ids, max_new_tokens, how: Sampling, rng=None, stop_tokens=(), stop=(), chunk=PIECE, kv="", slots=None
):
    """Streams a text as it is generated, up to the first stop token or stop string: no incomplete characters, and nothing of a
    stop string. `rng` replaces the seed, to continue a stream of random numbers; `kv` and `slots` are `generate`'s."""
    if isinstance(how.seed, str):
        raise UsageError(f"--seed is {how.seed!r}, expected a whole number")
    if how.beams:
        ids = beam_search(model, prompt_ids, max_new_tokens, how.beams, how.length_penalty, stop_tokens, kv)
    else:
        ids = generate(
            model,
            prompt_ids,
            max_new_tokens,
            how.temperature,
            how.top_k,
            how.top_p,
            rng or how.seed,
            min_p=how.min_p,
            repetition_penalty=how.repetition_penalty,
            stop_tokens=stop_tokens,
            chunk=chunk,
            kv=kv,
            speculate=how.speculate,
            slots=slots,
        )
    decoded = tokenizer.stream([id for id in prompt_ids if id != tokenizer.eot])
    until = Until([*how.stop, *stop])
    for id in ids:
        yield until.push(decoded.push(id))
        if until.ended:
            return
    yield until.push(decoded.flush()) + until.flush()


class Until:
    """Passes text on up to the first of some stop strings; holds back what may be the beginning of one."""

    def __init__(self, stops):
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.ended = False

    def push(self, text):
        held = self._held + text
        found = [at for stop in self._stops if (at := held.find(stop)) >= 0]
        if found:
            self.ended, self._held = True, ""
            return held[: min(found)]
        begun = max((n for stop in self._stops for n in range(1, len(stop)) if held.endswith(stop[:n])), default=0)
        self._held = held[len(held) - begun :]
        return held[: len(held) - begun]

    def flush(self):
        """What was held back, now that nothing follows it."""
        held, self._held = self._held, ""
        return held
