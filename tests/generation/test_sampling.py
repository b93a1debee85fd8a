"""The sampler's ways to choose, beam search against all continuations, stop strings, and the program's flags."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from programs import call

import gpt2c
from gpt2c.errors import UsageError
from gpt2c.generation.beam import beam_search, log_softmax
from gpt2c.generation.decoder import choose, penalised
from gpt2c.generation.sampling import Sampling, Until, pieces
from gpt2c.generation.slots import BatchSampler, choose_rows
from gpt2c.support.rng import Xorshift
from gpt2c.tokenizers.tokenizer import Tokenizer

FAMILIES = {
    "gpt2": dict(num_layers=1, channels=16, num_heads=2, max_seq_len=12),
    "chargpt": dict(num_layers=1, channels=16, num_heads=2, max_seq_len=12),
    "mingru": dict(dim=16, depth=2),
    "trm": dict(channels=16, hidden=16, num_heads=2, max_seq_len=12),
    "trm adaptive": dict(channels=16, hidden=16, num_heads=2, max_seq_len=12, adaptive=True, depth=2, max_depth=4),
    "hybrid": dict(hidden=16, embed=8, num_layers=2),
}


def small(family, vocab_size=5, seed=3):
    m = gpt2c.create(family.split()[0], vocab_size=vocab_size, seed=seed, **FAMILIES[family])
    m.params.flat[:] *= 4  # far from uniform
    if family.startswith("trm"):
        m.params["alpha"][:], m.params["beta"][:] = 0.5, 0.4
    if family == "trm adaptive":  # tokens halt at different steps
        m.params["halt_w"][:] = np.random.default_rng(seed).standard_normal(16) * 3
    return m


@pytest.fixture
def byte_model():
    m = small("gpt2", 257)
    m.tokenizer = Tokenizer.make("byte", specials=("<|endoftext|>",))
    return m


# ---- choosing


def seen(logits, **how):
    return {choose(logits, Xorshift(seed), **how) for seed in range(1, 400)}


@pytest.mark.parametrize("top_p, expected", [(0.25, {0}), (0.26, {0, 1}), (0.5, {0, 1}), (0.75, {0, 1, 2}), (0.76, {0, 1, 2, 3})])
def test_top_p_takes_no_more_than_it_needs(top_p, expected):
    """Of four equal ones, whose sums are exact: those that come to just that much, and not one more."""
    assert seen(np.zeros(4, np.float32), top_p=top_p) == expected


def test_min_p_leaves_out_what_is_far_less_likely_than_the_best():
    logits = np.log(np.array([0.04, 0.4, 0.3, 0.16, 0.1], np.float32))
    assert seen(logits, min_p=0.05) == {0, 1, 2, 3, 4}
    assert seen(logits, min_p=0.3) == {1, 2, 3}
    assert seen(logits, min_p=1.0) == {1}
    assert seen(logits, min_p=0.3, top_k=2) == {1, 2}
    draws = [choose(logits, Xorshift(7 * seed + 1), min_p=0.5) for seed in range(3000)]
    assert np.mean(np.array(draws) == 1) == pytest.approx(4 / 7, abs=0.03)


def test_a_penalty_makes_what_was_there_less_likely():
    logits = np.array([2, -2, 1, -1], np.float32)
    assert penalised(logits, {0, 1}, 2.0).tolist() == [1, -4, 1, -1]
    assert logits.tolist() == [2, -2, 1, -1]
    m, ids = small("gpt2"), [1]
    for new in gpt2c.generate(m, [1], 8, temperature=0, repetition_penalty=1.5):
        m.forward([ids])
        assert new == int(penalised(m.logits[0, -1, :5], set(ids), 1.5).argmax())
        ids.append(new)
    assert ids[1:] != list(gpt2c.generate(m, [1], 8, temperature=0))


def test_stop_tokens_end_the_text_and_are_not_part_of_it():
    m = small("gpt2")
    ids = list(gpt2c.generate(m, [1], 10, seed=5))
    stop = ids[3]
    assert list(gpt2c.generate(m, [1], 10, seed=5, stop_tokens=[stop])) == ids[: ids.index(stop)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_may_be_read_in_chunks_of_any_size(family):
    m = small(family)
    texts = [list(gpt2c.generate(m, [1, 2, 3, 4, 0], 6, temperature=0, chunk=chunk)) for chunk in (1, 2, 512)]
    assert texts[0] == texts[1] == texts[2]


WAYS = [
    dict(temperature=0),
    dict(temperature=1.3),
    dict(temperature=0.7, top_k=3),
    dict(top_p=0.8),
    dict(min_p=0.2, temperature=1.5),
    dict(temperature=0, repetition_penalty=1.7),
    dict(temperature=0.9, top_k=4, top_p=0.9, min_p=0.05, repetition_penalty=1.2),
]


@pytest.mark.parametrize("how", WAYS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_way_to_choose_is_that_of_the_full_forward_alone_or_in_a_batch(family, how):
    """Tokens one by one through a cache or a state, rows side by side, and everything anew for each token: the same text."""
    m, prompts, seeds = small(family, vocab_size=11), [[1, 2, 3], [4], [9, 10], [1, 2, 3]], [5, 6, 7, 8]
    options = {name: value for name, value in how.items() if name != "repetition_penalty"}
    texts = []
    for prompt, seed in zip(prompts, seeds):
        ids, rng = list(prompt), Xorshift(seed)
        for _ in range(8):
            m.reset_state()
            m.forward([ids])
            logits = penalised(m.logits[0, -1, :11], set(ids), how.get("repetition_penalty", 1.0))
            ids.append(choose(logits, rng, **options))
        texts.append(ids[len(prompt) :])
        assert list(gpt2c.generate(m, prompt, 8, seed=seed, **how)) == texts[-1]
    assert gpt2c.generate_batch(m, prompts, 8, seeds=seeds, **how) == texts


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_ends_each_text_at_its_own_stop_token(family):
    m, prompts = small(family), [[1], [2, 3], [4, 0, 1]]
    alone = [list(gpt2c.generate(m, prompt, 9, seed=1337 + row, stop_tokens=[0, 2])) for row, prompt in enumerate(prompts)]
    assert gpt2c.generate_batch(m, prompts, 9, stop_tokens=[0, 2]) == alone and len({*map(len, alone), 9}) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_stop_strings_end_the_text_of_every_family(family):
    m = small(family, vocab_size=257)
    tokenizer = Tokenizer.make("byte", specials=("<|endoftext|>",))
    text = "".join(pieces(m, tokenizer, [65, 66], 9, Sampling(seed=4)))
    stop = text[3:5]
    assert "".join(pieces(m, tokenizer, [65, 66], 9, Sampling(seed=4, stop=[stop]))) == text[: text.index(stop)]


@pytest.mark.parametrize("how", [dict(seeds=[1]), dict(top_p=0), dict(seeds=[0, 1])])
def test_a_batch_that_cannot_be_is_refused(how):
    with pytest.raises(UsageError):
        gpt2c.generate_batch(small("gpt2"), [[1], [2]], 3, **how)
    assert gpt2c.generate_batch(small("gpt2"), [], 3) == []
    with pytest.raises(UsageError, match="more than the model's max_seq_len of 12"):
        gpt2c.generate_batch(small("gpt2"), [[1], [2]], 12)


@pytest.mark.parametrize(
    "how", [dict(min_p=-0.1), dict(min_p=1.1), dict(repetition_penalty=0), dict(chunk=0), dict(temperature=float("nan"))]
)
def test_what_cannot_be_is_refused(how):
    with pytest.raises(UsageError, match="expected"):
        list(gpt2c.generate(small("gpt2"), [1], 1, **how))


TOO_COLD = [0, 5e-324, 1e-300, 1e-46, 1e-45, 1e-39]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("temperature", TOO_COLD)
def test_a_temperature_that_a_float32_takes_for_nothing_is_greedy(temperature):
    """Alone, in a batch and for rewards: the likeliest, the first of several."""
    logits = np.array([-3, 2, 5, 5, 1], np.float32)
    assert seen(logits, temperature=temperature) == {2}
    assert set(choose_rows(np.tile(logits, (50, 1)), np.linspace(0, 0.99, 50), temperature)) == {2}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("temperature", [1e-37, 1e-30, 1e-10, 1e30, 1e300, np.inf])
def test_any_other_temperature_is_one(temperature):
    logits = np.array([-3e4, 2, 5, 5, 1], np.float32)
    expected = {2, 3} if temperature < 1 else {0, 1, 2, 3, 4}
    assert seen(logits, temperature=temperature) == expected
    assert set(choose_rows(np.tile(logits, (50, 1)), np.linspace(0, 0.99, 50), temperature)) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_greedy_on_every_path(family):
    m, ids = small(family, vocab_size=11), [1, 2]
    for _ in range(8):
        m.reset_state()
        m.forward([ids])
        ids.append(int(m.logits[0, -1, :11].argmax()))
    for temperature in (0, 1e-60):
        assert list(gpt2c.generate(m, [1, 2], 8, temperature)) == ids[2:]
        assert gpt2c.generate_batch(m, [[1, 2], [3]], 8, temperature)[0] == ids[2:]
        sampled = BatchSampler(m).sample([[1, 2], [3]], 8, np.random.default_rng(0), temperature=temperature)
        assert sampled[0] == ids[2:]
    assert beam_search(m, [1, 2], 8, width=1) == ids[2:]


@pytest.mark.parametrize("temperature", [-1, float("nan")])
def test_rewards_are_not_for_a_temperature_that_is_none(temperature):
    with pytest.raises(UsageError, match="temperature is"):
        BatchSampler(small("gpt2")).sample([[1]], 2, np.random.default_rng(0), temperature=temperature)


# ---- beam search


def best_of_all(m, prompt, longest, length_penalty, eos):
    """The best continuation among all there are, each scored by full forwards."""

    def log_prob(ids):
        m.reset_state()
        m.forward([prompt + ids])
        rows = m.logits[0, len(prompt) - 1 : -1, : m.config.vocab_size]
        return sum(log_softmax(row)[id] for row, id in zip(rows, ids))

    every = [
        list(ids)
        for n in range(1, longest + 1)
        for ids in itertools.product(range(m.config.vocab_size), repeat=n)
        if eos not in ids[:-1] and (n == longest or ids[-1] == eos)
    ]
    best = max(every, key=lambda ids: log_prob(ids) / len(ids) ** length_penalty)
    return best[:-1] if best[-1] == eos else best


@pytest.mark.parametrize("length_penalty, eos, seed", [(0, None, 1), (0, 2, 1), (1, 2, 2), (2, 0, 3)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_wide_beam_finds_the_best_of_all(family, length_penalty, eos, seed):
    m = small(family, vocab_size=4, seed=seed)
    prompt = [1, 3]
    ends = () if eos is None else (eos,)
    assert beam_search(m, prompt, 4, 64, length_penalty, ends) == best_of_all(m, prompt, 4, length_penalty, eos)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_beam_of_one_is_greedy_and_a_wider_one_no_worse(family):
    m = small(family, vocab_size=9)
    greedy = list(gpt2c.generate(m, [1], 8, temperature=0))
    assert beam_search(m, [1], 8, 1) == greedy

    def log_prob(ids):
        m.reset_state()
        m.forward([[1, *ids]])
        return sum(log_softmax(row)[id] for row, id in zip(m.logits[0, :, :9], ids))

    assert log_prob(beam_search(m, [1], 8, 5)) >= log_prob(greedy) - 1e-6


class Markov:
    """In the place of a Decoder: the next token depends on the last one alone. Counts what it reads."""

    read = 0

    def __init__(self, model, context):
        self.model, self.context = model, context

    def feed(self, ids, decoding=False):
        Markov.read += 1
        return self.model.table[ids[-1]]

    def become(self, other):
        pass


@pytest.mark.parametrize("length_penalty", [0, 0.5, 1, 2])
def test_a_search_that_ends_early_would_have_found_nothing_better(monkeypatch, rng, length_penalty):
    monkeypatch.setattr("gpt2c.generation.beam.Decoder", Markov)
    reads = []
    for width in [1, 2, 3] * 40:
        model = SimpleNamespace(known_ids=4, table=3 * rng.standard_normal((4, 4)))
        found = []
        for never in False, True:
            with monkeypatch.context() as patch:
                if never:
                    patch.setattr("gpt2c.generation.beam._is_settled", lambda *_: False)
                before = Markov.read
                found.append(beam_search(model, [1], 8, width, length_penalty, stop_tokens=(0,)))
                reads.append(Markov.read - before)
        assert found[0] == found[1]
    assert sum(reads[::2]) < sum(reads[1::2])


def test_beams_leave_no_trace_in_a_recurrent_model():
    m = small("mingru")
    m.forward([[1, 2, 3]])
    before = m.state["h"].copy()
    beam_search(m, [1], 5, 3)
    assert (m.state["h"] == before).all()


# ---- text


@given(st.text("abc", max_size=20), st.lists(st.text("abc", min_size=1, max_size=3), max_size=3), st.data())
def test_stop_strings_are_found_however_the_text_is_cut(text, stops, data):
    until, shown, rest = Until(stops), "", text
    while rest and not until.ended:
        n = data.draw(st.integers(1, len(rest)))
        shown += until.push(rest[:n])
        rest = rest[n:]
        assert not any(stop in shown for stop in stops)
    shown += until.flush()
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    if ends:
        assert until.ended and shown == text[: len(shown)] and len(shown) >= min(ends) and not any(s in shown for s in stops)
    else:
        assert shown == text


def scripted(monkeypatch, ids):
    """Makes the sampler give these ids."""
    from gpt2c.generation import sampling

    monkeypatch.setattr(sampling, "generate", lambda *args, **how: iter(ids))


def test_a_stop_string_across_tokens_is_not_shown_in_part(byte_model, monkeypatch):
    scripted(monkeypatch, b"So it is. User: and")
    shown = list(pieces(byte_model, byte_model.tokenizer, [65], 99, Sampling(), stop=[" User:"]))
    assert "".join(shown) == "So it is."


def test_no_half_characters(byte_model, monkeypatch):
    scripted(monkeypatch, "née €5".encode() + b"\xe2\x82")
    shown = list(pieces(byte_model, byte_model.tokenizer, [65], 99, Sampling()))
    assert "".join(shown) == "née €5\ufffd" and "\ufffd" not in "".join(shown[:-1])


def test_words_go_on_after_the_prompt_with_a_space(monkeypatch):
    tokenizer = Tokenizer.make("word", "the sun rises, and sets.")
    scripted(monkeypatch, tokenizer.encode("rises, and sets."))
    shown = "".join(pieces(None, tokenizer, tokenizer.encode("the sun"), 9, Sampling()))
    assert shown == " rises, and sets."


# ---- the program


def test_the_program_s_flags(byte_model, tmp_path):
    path = tmp_path / "m.safetensors"
    byte_model.save(path)
    tokenizer = byte_model.tokenizer
    plain = [path, "-n", 9, "--ignore-eot"]
    drawn = gpt2c.generate(byte_model, tokenizer.encode("Hi"), 9, 0.8, 0, 1.0, 5, min_p=0.01, repetition_penalty=1.3)
    done = call(".", "infer", *plain, "--prompt", "Hi", "--min-p", 0.01, "--repeat-penalty", 1.3, "--seed", 5)
    assert done.stdout == "Hi" + tokenizer.decode(drawn) + "\n" and not done.stderr
    beams = beam_search(byte_model, tokenizer.encode("Hi"), 9, 3, 0.5)
    done = call(".", "generate", *plain, "--prompt", "Hi", "--beams", 3, "--length-penalty", 0.5)
    assert done.stdout == "Hi" + tokenizer.decode(beams) + "\n"
    document = ["--model", path, "--vocab", "vocab.txt", "--length", 9, "--chunk-size", 1, "--seed", "Hi", "--device-id", 0]
    done = call(".", "generate", *document, "--temperature", 0, "--stop", "zz", "--stop", "yy", "--ignore-eot")
    greedy = list(gpt2c.generate(byte_model, tokenizer.encode("Hi"), 9, temperature=0))
    assert done.stdout == "Hi" + tokenizer.decode(greedy) + "\n"
    assert "--seed 'Hi' is taken as the prompt" in done.stderr and "--device-id is deprecated" in done.stderr
