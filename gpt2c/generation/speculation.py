"""Prompt lookup: the next tokens are guessed from where the text last went on from the same ones.

It needs no second model, and is often right where a text repeats itself or its prompt: code, quotations, answers about a
document.
"""

SIZES = (3, 2)  # of the ends of a text that are looked for, the longest first


class Lookup:
    """The text so far, and what followed in it."""

    def __init__(self, ids):
        self._ids = []
        self._after = {}  # some tokens in a row: where the text went on the last time that it had them
        for id in ids:
            self.push(id)

    def push(self, id):
        for size in SIZES:
            if len(self._ids) >= size:
                self._after[tuple(self._ids[-size:])] = len(self._ids)
        self._ids.append(id)

    def draft(self, count):
        """Up to `count` ids. Where they come to the end of the text they go on as they began."""
        at = next((at for size in SIZES if (at := self._after.get(tuple(self._ids[-size:])))), None)
        if at is None or count < 1:
            return []
        repeated = self._ids[at : at + count]
        return [repeated[n % len(repeated)] for n in range(count)]
