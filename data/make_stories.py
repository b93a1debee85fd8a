"""Writes the data set that comes with gpt2c: simple English stories as token shards, and their tokenizer.

    python data/make_stories.py [--out DIR]

The stories are made from the plots in story_plots.txt and the words in story_words.txt, which were written
for this project. The files are always the same: stories_tokenizer.bin, stories_train.bin and stories_val.bin.
"""

import argparse
import random
import re
from pathlib import Path

from gpt2c.data import write_shard
from gpt2c.tokenizers.byte_level import raw
from gpt2c.tokenizers.tokenizer import Tokenizer

HERE = Path(__file__).parent
SEED = 2026
STORIES = 3400
VAL_STORIES = 100  # the last ones
LENGTHS = range(60, 201)  # words in a story
VOCAB_SIZE = 4096
EOT = b"<|endoftext|>"
PRONOUNS = {"girl": "she her her", "boy": "he him his"}
ALWAYS_BOUND = ["season=season:spring,summer,autumn", "scene", "relative", "elder", "job", "pet", "petname", "house", "toy"]


def read_words(path):
    """{list name: {entry: {field: [text, ...]}}}; the entries of a plain list have no fields."""
    lists = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            name, *fields = line.strip("[]").replace(":", "").split()
            entries = lists[name] = {}
        elif line and not line.startswith("#"):
            if fields:
                entry, *cells = line.split(" | ")
                entries[entry] = {f: c.split("; ") for f, c in zip(fields, cells, strict=True)}
            else:
                entries.update((entry, {}) for entry in line.rstrip(";").split("; "))
    return lists


def read_plots(path):
    """{plot name: (bindings, slots)}; a binding is key=list, a slot the list of its lines."""
    plots = {}
    for plot in path.read_text(encoding="utf-8").split("\n== ")[1:]:
        head, body = plot.split("\n", 1)
        name, *bindings = head.split()
        plots[name] = bindings, [slot.split("\n") for slot in body.strip().split("\n\n")]
    return plots


class Story:
    """A story in the making: what its keys are bound to, and which words and lines it has used."""

    def __init__(self, lists, plots, rng):
        self.lists, self.plots, self.rng = lists, plots, rng
        self.bound = {}  # key -> text
        self.fields = {}  # key -> {field: [text, ...]}, where it is bound to an entry with fields
        self.used = set()
        self.met = False  # whether the friend has been introduced

    def write(self, plot):
        he, she = self.rng.sample(["boy", "girl"], 2)  # one of each, so that "he" and "she" are always clear
        self.bind_person("hero", "", he, animal=self.rng.random() < 0.25)
        self.bind_person("friend", "f.", she, animal=self.rng.random() < 0.25)
        self.bind_person("other", "other.", self.rng.choice([he, she]), animal=False)
        bindings, slots = self.plots[plot]
        for binding in ALWAYS_BOUND + bindings:
            self.bind(binding)
        return polish(" ".join(filter(None, map(self.slot, slots))))

    def bind_person(self, key, prefix, sex, animal):
        self.bind(f"{key}={sex}")
        self.bound[prefix + "kind"] = self.fresh(self.lists["creature"]) if animal else sex
        for form, word in zip(("he", "him", "his"), PRONOUNS[sex].split(), strict=True):
            self.bound[prefix + form] = word

    def bind(self, binding):
        """key, key=list, key=list|list or key=list:entry,entry."""
        key, _, source = binding.partition("=")
        names, _, entries = (source or key).partition(":")
        name = self.rng.choice(names.split("|"))
        entry = self.fresh(entries.split(",") if entries else self.lists[name])
        self.bound[key] = self.expand(entry)
        self.fields[key] = self.lists[name][entry]

    def fresh(self, texts):
        """One of the texts, and none twice in a story as long as there are others."""
        text = self.rng.choice([t for t in texts if t not in self.used] or list(texts))
        self.used.add(text)
        return text

    def slot(self, lines):
        if lines[0] == "--":
            return "\n"
        if lines[0] == "?":
            if self.rng.random() < 0.5:
                return ""
            lines = lines[1:]
        return capital(self.expand(re.sub(r"(@\w+)(\??)", self.shared, self.fresh(lines))).strip())

    def shared(self, match):
        name, optional = match.groups()
        if optional and self.rng.random() < 0.5:
            return ""
        return self.slot(self.plots[name][1][0])

    def expand(self, text):
        text = re.sub(r"\[([^][]*)\]", lambda match: self.rng.choice(match[1].split("|")), text)
        return re.sub(r"\{([^{}]+)\}", self.word, text)

    def word(self, match):
        """The text for {key}, {key.field} or {key:form}; what is not bound is drawn anew each time."""
        written, _, form = match[1].partition(":")
        key = written[0].lower() + written[1:]
        name, _, field = key.partition(".")
        if key == "friend":
            text = self.friend(match)
        elif key in self.bound:
            text = self.bound[key]
        elif field:
            text = self.fresh(self.fields[name][field])
        else:
            text = self.fresh(self.lists[name.rstrip("123")])
        text = self.expand(text)
        if form == "s":
            text = plural(text)
        return capital(text) if form == "cap" or written != key else text

    def friend(self, match):
        """The friend's name; first "his friend Name", but not in direct speech or where it says so anyway."""
        line, name = match.string, self.bound["friend"]
        spoken = line.count('"', 0, match.start()) % 2
        if self.met or spoken:
            return name
        self.met = True
        return name if " friend" in line else "{his} friend " + name


def capital(text):
    return text[:1].upper() + text[1:]


def plural(noun):
    if noun.endswith(("s", "sh", "ch", "x", "tomato", "potato", "mango")):
        return noun + "es"
    return noun[:-1] + "ies" if re.search("[^aeiou]y$", noun) else noun + "s"


def polish(text):
    """Paragraphs without space around them, "an" before vowels, and capitals where sentences begin."""
    text = re.sub(r" *\n *", "\n", text)
    text = re.sub(r"\b([Aa]) (?=[aeiouAEIOU]|honest)(?!uni|use|one)", r"\1n ", text)
    return re.sub(r"(?:^|\n|[.!?] |\.\" )\"?[a-z]", lambda match: match[0][:-1] + match[0][-1].upper(), text)


def make_stories():
    """The stories, all different."""
    lists, plots = read_words(HERE / "story_words.txt"), read_plots(HERE / "story_plots.txt")
    names = [name for name in plots if not name.startswith("@")]
    rng = random.Random(SEED)
    stories = {}  # as an ordered set
    while len(stories) < STORIES:
        story = Story(lists, plots, rng).write(rng.choice(names))
        if len(story.split()) in LENGTHS:
            stories[story] = None
    return list(stories)


def train_tokenizer(stories):
    """Byte-level BPE: the 256 bytes in GPT-2's order, the merges in their order, and last the end of text."""
    import tokenizers

    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = byte_level
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 1, initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    library.train_from_iterator(stories, trainer)
    tokens = [raw(library.id_to_token(id)) for id in range(VOCAB_SIZE - 1)]
    return Tokenizer([*tokens, EOT], eot=VOCAB_SIZE - 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to (that of this program)")
    folder = parser.parse_args().out
    stories = make_stories()
    tokenizer = train_tokenizer(stories)
    tokenizer.save_bin(folder / "stories_tokenizer.bin")
    for name, part in ("train", stories[:-VAL_STORIES]), ("val", stories[-VAL_STORIES:]):
        ids = [id for story in part for id in (tokenizer.eot, *tokenizer.encode(story))]
        write_shard(folder / f"stories_{name}.bin", ids)
        print(
            f"stories_{name}.bin: {len(part):,} stories, {len(ids):,} tokens, "
            f"{sum(map(len, part)) / len(ids):.2f} characters per token"
        )


if __name__ == "__main__":
    main()
