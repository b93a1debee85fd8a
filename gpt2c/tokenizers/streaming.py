"""The text of ids that arrive one at a time."""

import codecs


class TextStream:
    """Gives the text of each id as it comes and holds back a character until all its bytes are there."""

    def __init__(self, tokenizer, after=()):
        self.tokenizer = tokenizer
        self.before = list(after)[-2:]  # the last two ids: words are written according to the two before them
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        decode = self.tokenizer.decode_bytes
        new = decode([*self.before, id])[len(decode(self.before)) :]
        self.before = [*self.before[-1:], id]
        return self.decoder.decode(new)

    def flush(self) -> str:
        """What is left: U+FFFD where the last character is incomplete, else nothing."""
        return self.decoder.decode(b"", final=True)
