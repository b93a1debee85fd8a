"""python -m gpt2c.train [flags]: the same as gpt2c train."""

from gpt2c.__main__ import main

if __name__ == "__main__":
    main("train")
