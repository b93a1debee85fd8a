"""GRUfinity's vocab.txt: 256 lines of a byte and its id, which are the same number, in any order."""

import re

from gpt2c.errors import TokenizationError

TEXT = "".join(f"{byte} {byte}\n" for byte in range(256))
LONGEST = 2 * len(TEXT)  # more than any such file has, whatever ends its lines


def is_list(head):
    """Whether a file that begins so is one."""
    return bool(re.match(rb"\d{1,3} \d{1,3}\r?\n", head))


def check(content, path):
    """An error unless each byte is there once and is its own id."""
    found = sorted(line.split() for line in content.decode("latin-1").splitlines())
    if found != sorted(line.split() for line in TEXT.splitlines()):
        raise TokenizationError(
            f"{path} begins as a list of bytes but has {len(found)} lines that are not each byte with "
            "itself as its id; expected the 256 lines of GRUfinity's vocab.txt, or a tokenizer.json"
        )
