"""How much a program tells."""

import pytest

from gpt2c.errors import UsageError
from gpt2c.runs.console import log_level


@pytest.mark.parametrize("environment, level", [
    ({}, "info"), ({"GPT2C_LOG": "warn"}, "warning"), ({"RUST_LOG": "debug"}, "debug"), ({"RUST_LOG": "warn"}, "warning"),
    ({"RUST_LOG": "hyper=debug,error"}, "error"), ({"RUST_LOG": "hyper=debug"}, "info"), ({"RUST_LOG": "trace"}, "debug"),
    ({"RUST_LOG": "debug", "GPT2C_LOG": "error"}, "error"),
])  # fmt: skip
def test_the_level_is_gpt2c_s_own_or_else_the_one_that_the_documents_set(environment, level):
    assert log_level(environment) == level


def test_an_unknown_level_of_its_own_is_an_error():
    with pytest.raises(UsageError, match="GPT2C_LOG is 'loud', expected one of debug"):
        log_level({"GPT2C_LOG": "loud", "RUST_LOG": "info"})
