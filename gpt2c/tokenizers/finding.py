"""Finding the tokenizer that belongs to a model, or one to begin with."""

from gpt2c.errors import UsageError
from gpt2c.support.files import find_file
from gpt2c.tokenizers.tokenizer import GPT2_FILE, Tokenizer


def find_gpt2_tokenizer(*folders):
    """GPT-2's tokenizer file in one of these folders, here, or in data/; None if it is in none of them."""
    return find_file(GPT2_FILE, *folders)


def default_tokenizer(family):
    """The family's own kind; where it has none, GPT-2's if its file is at hand, else characters."""
    return family.tokenizer or ("gpt2" if find_gpt2_tokenizer() else "char")


def tokenizer_of_model(model, path=""):
    """The model's own tokenizer, else the one in this file, else GPT-2's."""
    if model.tokenizer:
        return model.tokenizer
    path, vocab_size = path or find_gpt2_tokenizer(), model.config.vocab_size
    if not path:
        raise UsageError(
            "the checkpoint has no tokenizer and there is no gpt2_tokenizer.bin here or in data/; run "
            "downloaddataset.sh --only gpt2_tokenizer.bin, or name a file with --tokenizer"
        )
    tokenizer = Tokenizer.load(path)
    if tokenizer.vocab_size != vocab_size:
        raise UsageError(f"{path} has {tokenizer.vocab_size} tokens, the model {vocab_size}; name its own with --tokenizer")
    return tokenizer
