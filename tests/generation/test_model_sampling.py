"""What a model says of how its tokens are best chosen: a layer of the settings, kept by its files."""

import pytest
from programs import call

import gpt2c
from gpt2c.commands import chat as chat_program
from gpt2c.commands import generate as generate_program
from gpt2c.commands.command_line import CommandLine, merge
from gpt2c.errors import SerializationError
from gpt2c.generation.sampling import Sampling, layers, usual
from gpt2c.tokenizers.tokenizer import Tokenizer

SAYS = {"temperature": 0.6, "top_k": 20.0, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.1}


@pytest.fixture
def model():
    made = gpt2c.create("gpt2", num_layers=1, channels=16, num_heads=2, vocab_size=259, max_seq_len=32)
    made.tokenizer = Tokenizer.make("byte", specials=("<|bos|>", "<|eos|>", "<|im_end|>"))
    made.tokenizer.chat_template = "{{ messages[0].content }}"
    return made


def merged(model, answers, *words):
    return merge(CommandLine(words), [Sampling], "prog", layers=layers(model, answers))


def test_a_value_is_of_the_strongest_layer_and_can_say_which(model):
    model.sampling = {"top_p": 0.9, "top_k": 20.0}
    found = merged(model, "--chat", "--top-k", "7")
    how = found.instances[0]
    assert (how.temperature, how.top_p, how.top_k, how.min_p) == (0.0, 0.9, 7, 0.0)
    assert {name: origin for (_, name), origin in found.origins.items()} == {
        "temperature": "--chat",
        "top_p": "the model",
        "top_k": "command line",
    }
    assert merged(model, "").instances[0].temperature == Sampling.temperature
    model.sampling = SAYS
    assert merged(model, "--chat").instances[0] == usual(model, "--chat") == Sampling(**SAYS)
    assert type(usual(model).top_k) is int


def test_a_family_s_own_is_the_weakest():
    model = gpt2c.create("hybrid", vocab_size=9, hidden=16, embed=8, num_layers=1)
    assert usual(model).temperature == 0.3 and usual(model, "--chat").temperature == 0.0
    assert merged(model, "").origins == {(0, "temperature"): "the family hybrid"}
    model.sampling = {"temperature": 1.0}
    assert usual(model, "--chat").temperature == 1.0


def test_programs_choose_so(model, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(generate_program, "pieces", lambda *args: asked.append(args[4]) or iter([]))
    monkeypatch.setattr(chat_program, "chat", lambda conversation: asked.append(conversation.how))
    model.sampling = SAYS
    model.save(tmp_path / "a.safetensors")
    model.sampling = {}
    model.save(tmp_path / "b.safetensors")
    (tmp_path / "c.toml").write_text("temperature = 0.2\ntop-p = 0.5\n")
    for words in (["generate"], ["generate", "--chat"], ["chat"]):
        call(tmp_path, *words, "a.safetensors")
        call(tmp_path, *words, "a.safetensors", "--config", "c.toml", "--top-p", "0.8")
        call(tmp_path, *words, "b.safetensors")
        greedy = 0.8 if words == ["generate"] else 0.0
        assert asked == [Sampling(**SAYS), Sampling(**SAYS | {"temperature": 0.2, "top_p": 0.8}), Sampling(temperature=greedy)]
        asked.clear()


@pytest.mark.parametrize("ending", ["safetensors", "json"])
def test_files_keep_it(model, ending, tmp_path):
    model.sampling = SAYS
    model.save(tmp_path / f"x.{ending}")
    assert gpt2c.load(tmp_path / f"x.{ending}").sampling == SAYS
    call(tmp_path, "convert", f"x.{ending}", "y.json")
    assert gpt2c.load(tmp_path / "y.json").sampling == SAYS


@pytest.mark.parametrize("said", [{"temperature": -1}, {"top_k": 1.5}, {"heat": 1}, {"top_p": "1"}, {"min_p": True}, [], 3])
@pytest.mark.parametrize("ending", ["safetensors", "json"])
def test_what_no_token_can_be_chosen_by_is_refused(model, ending, said, tmp_path):
    model.sampling = said or [3]
    model.save(tmp_path / f"x.{ending}")
    with pytest.raises(SerializationError, match="sampling"):
        gpt2c.load(tmp_path / f"x.{ending}")


def test_info_shows_how_a_model_is_spoken_with(model, tmp_path):
    made = model.tokenizer
    made.chat_template, made.bos, made.adds_bos, made.ends = "{{ bos_token }}\x1b[2J\n{{ 1 }}", 256, True, [258, 257]
    model.sampling = {"top_k": 4}
    model.save(tmp_path / "x.safetensors")
    told = call(tmp_path, "info", "x.safetensors").stdout
    expected = ["bos: 256 '<|bos|>'", "adds bos: True", "ends: 258 '<|im_end|>', 257 '<|eos|>'", "sampling:\n  top_k: 4"]
    assert all(f"\n{line}\n" in told for line in expected) and "\x1b" not in told
    assert "chat template: 27 characters, '{{ bos_token }}\\x1b[2J'..." in told
    made.chat_template, made.bos, made.adds_bos, made.ends = "", None, False, []
    model.save(tmp_path / "x.safetensors")
    told = call(tmp_path, "info", "x.safetensors").stdout
    assert "chat template: none" in told and "\nbos: none\n" in told and "\nends: none\n" in told
