"""Text that reaches a terminal as text, and streams that cannot be written to."""

import io
import os
import unicodedata

import pytest

from gpt2c.errors import ResourceError
from gpt2c.support.progress import Progress
from gpt2c.support.streams import Output, ReaderGone, bare, say, shown
from gpt2c.tokenizers.tokenizer import Tokenizer


def test_control_characters_are_shown_and_all_others_are_sent():
    kept = {"\n", "\t"} | {"\u200e", "\u200f", "\u061c"}  # marks that Hebrew and Arabic need, and which reorder nothing else
    for code in [*range(0x3000), *range(0xE000, 0xF000), 0x1F600]:
        char = chr(code)
        controls = unicodedata.category(char) == "Cc" or unicodedata.bidirectional(char) in BIDIRECTIONAL
        if controls and char not in kept:
            assert shown(char).isascii() and shown(char).isprintable() and shown(char)[0] == "\\", code
        else:
            assert shown(char) == char, code
    assert shown("a\x1b]0;b\x07\r\x9bc\u202ed\n\té") == r"a\x1b]0;b\x07\r\x9bc\u202ed" + "\n\té"
    assert shown(shown("\x1b\r\u2066")) == shown("\x1b\r\u2066")


BIDIRECTIONAL = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def test_a_character_of_several_tokens_arrives_whole():
    stream, out = Tokenizer.make("byte").stream(), Output(file := io.StringIO())
    for id in "é\x1b\u2603\x9b\U0001f600".encode():
        out.write(stream.push(id))
    assert file.getvalue() == "é\\x1b\u2603\\x9b\U0001f600"


def broken(error):
    class Broken(io.StringIO):
        def write(self, text):
            raise error

    return Broken()


NO_ROOM = OSError(28, "No space left on device")


@pytest.mark.parametrize("error", [NO_ROOM, BrokenPipeError(), ValueError("I/O operation on closed file.")])
def test_what_is_only_said_may_be_lost(error, monkeypatch):
    for stream in ("stdout", "stderr"):
        for file in (broken(error), Output(broken(error), needed=stream == "stdout")):
            monkeypatch.setattr(f"sys.{stream}", file)
            say("nothing", stream)
    print("nothing", file=Output(broken(error)), flush=True)


def test_without_standard_error_what_is_said_goes_nowhere_else(monkeypatch, capsys):
    """As in a program of one's own after 2>&-."""
    monkeypatch.setattr("sys.stderr", None)
    say("nothing", "stderr")
    progress = Progress("nothing", 2)
    monkeypatch.setattr(progress, "_every", -1)
    progress.update(1)
    progress.end()
    assert capsys.readouterr().out == ""


def test_what_is_said_from_a_signal_in_the_middle_of_a_print_may_be_lost(monkeypatch):
    monkeypatch.setattr("sys.stderr", Output(broken(RuntimeError("reentrant call inside <_io.BufferedWriter>"))))
    say("nothing", "stderr")


def test_what_was_asked_for_is_an_error_however_much_was_only_said_before(monkeypatch):
    monkeypatch.setattr("sys.stdout", out := Output(broken(NO_ROOM), needed=True))
    say("nothing")
    for stream in (out, bare(out)):
        with pytest.raises(ResourceError, match="standard output cannot be written to: No space left on device; send it"):
            stream.write("something")
    with pytest.raises(ReaderGone):
        Output(broken(BrokenPipeError()), needed=True).write("something")


def test_what_could_not_be_written_is_not_tried_again(tmp_path):
    """Python tries to, at its end, and then tells of it."""
    with open(os.devnull) as unwritable:
        file = open(os.dup(unwritable.fileno()), "w")
    out = Output(file)
    out.write("something")
    out.flush()
    file.flush()
    file.close()
