"""gpt2c's programs, called as a user calls them: words in a folder, and the exit code that must come of it."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from unittest import mock

import pytest

import gpt2c
from gpt2c.__main__ import main


def command(*words):
    return [sys.executable, "-m", "gpt2c", *map(str, words)]


def start(folder, *words, **more):
    """`gpt2c WORDS`, running, with these variables of the environment; what it says goes into pipes."""
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command(*words), cwd=folder, env=os.environ | more, **pipes)


def run(folder, *words, code=0, input=None, **more):
    """`gpt2c WORDS` in a process of its own, with these variables of the environment, to its end."""
    how = dict(capture_output=True, text=True, timeout=120)
    done = subprocess.run(command(*words), cwd=folder, env=os.environ | more, input=input, **how)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def call(folder, *words, code=0):
    """The same in this process, which begins at once: where neither signals nor what is typed take part."""
    words, out, err = [str(word) for word in words], io.StringIO(), io.StringIO()
    with as_before(), contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        with mock.patch.object(sys, "argv", ["gpt2c", *words]), pytest.raises(SystemExit) as end:
            main()
    if end.value.code in (128 + signal.SIGINT, 128 + signal.SIGTERM):  # whoever ends the tests met a program in them
        os.kill(os.getpid(), end.value.code - 128)
    done = subprocess.CompletedProcess(words, end.value.code, out.getvalue(), err.getvalue())
    assert done.returncode == code, done.stdout + done.stderr
    return done


@contextlib.contextmanager
def as_before():
    """What a program sets for its process is put back."""
    settings = gpt2c.info()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        gpt2c.set_num_threads(settings["threads"])
        gpt2c.set_isa(settings["isa"])
        gpt2c.set_matmul_precision(settings["matmul_precision"])
        for number, handler in handlers.items():
            signal.signal(number, handler)
