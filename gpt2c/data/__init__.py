"""Data: from text to token files, and from token files to batches.

reading, records, documents    UTF-8 text, JSON and CSV, piece by piece
conversations, items           prompts and answers
encoding, writer, texts        text to ids; data sets on disk; the cache of encoded text
shards, choices                the token files
datasets, layouts              what is below data/; data sets as llm.c's scripts make them
loader, windows, lanes         batches
identity                       which data these are, as checkpoints record it
sources                        which of all these a run's flags ask for
"""

from gpt2c.data.choices import is_choice_file, read_choices, write_choices
from gpt2c.data.datasets import choose_dataset, dataset_of, find_datasets, list_datasets
from gpt2c.data.documents import text_files
from gpt2c.data.items import ItemLoader, read_items
from gpt2c.data.lanes import Lanes
from gpt2c.data.loader import DataLoader
from gpt2c.data.reading import Reading
from gpt2c.data.shards import is_token_file, read_shard, write_shard
from gpt2c.data.texts import VocabularySource, text_dataset
from gpt2c.data.windows import DocumentWindows, RandomWindows

__all__ = [
    "DataLoader",
    "DocumentWindows",
    "ItemLoader",
    "Lanes",
    "RandomWindows",
    "Reading",
    "VocabularySource",
    "choose_dataset",
    "dataset_of",
    "find_datasets",
    "is_choice_file",
    "is_token_file",
    "list_datasets",
    "read_choices",
    "read_items",
    "read_shard",
    "text_dataset",
    "text_files",
    "write_choices",
    "write_shard",
]
