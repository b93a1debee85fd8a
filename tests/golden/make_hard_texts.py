"""Writes hard_texts.json: texts that are hard for tokenizers, and their GPT-2 ids from tiktoken.

    python tests/golden/make_hard_texts.py gpt2_tokenizer.bin      (needs tiktoken)

tiktoken is given the ranks of the tokenizer file, whose ids they are, and its own pattern for GPT-2.
"""

import json
import sys
from pathlib import Path

import tiktoken

PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""

TEXTS = [
    "",
    " ",
    "Hello world",
    "I'm sure they'll say it's what we've done; he'd agree you're right, isn't it? DON'T 'TIS 'll 's",
    "don\u2019t \u2018quote\u2019 \u201cdouble\u201d \u2014 dash\u2026",
    "  two  spaces\n\n\nand\ttabs\t\t \n trailing   ",
    "\r\n\r\n \r a\rb \r\n c",
    " \n \n  x\n   \n",
    "a\u00a0b\u00a0\u00a0c \u00a0d\u3000e\u2003f\u2009g\u202fh\u205fi\u1680j",
    "line\u2028separator\u2029paragraph\x85next\x0bvertical\x0cform",
    "\x1c\x1d\x1e\x1f a\x1cb \x1fc",
    "\x00\x01\x02\x07\x08\x1b[31mred\x1b[0m\x7f\x80\x9f",
    "\ufeffbyte order mark \u200bzero width\u200c\u200d\u2060\ufeff",
    "\ufffd replacement \ufffe\uffff \U0010ffff \ue000private",
    "😀 😀😀 👍🏽 👩\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 🇩🇪🇫🇷 1️⃣ ☺️",
    "e\u0301 \u00e9 n\u0303 \u1e9b\u0323 Z\u0351\u036b\u0343algo \u0e01\u0e33 \u0939\u093f\u0928\u094d\u0926\u0940",
    "日本語のテキスト、中文文本。한국어 텍스트 ａｂｃ１２３",
    "Ελληνικά Русский עברית العربية ١٢٣ فارسی ۴۵۶ ไทย",
    "Straße İstanbul ıI ǅ ŉ ﬁ ﬂ ª º",
    "1234567890 3.14159 1,000,000 0x1F 1e-9 ½ ² ³ Ⅷ ① ٣ 10th 007",
    'def f(x):\n\tif x >= 10 and not y:\n        return {\'a\': [1, 2, *x], "b": f"{x!r:>10}"}  # why\n\n\n',
    '#include <stdio.h>\r\nint main(void) { printf("%d\\n", 1 << 3); return 0; }\r\n',
    '<html><body class="a-b_c">&nbsp;&#8212;</body></html><!-- x -->',
    "https://example.org/a/b?c=d&e=%20#f user@example.org C:\\dir\\file.txt ~/x",
    "<|endoftext|> <|endoftext|><|bos|></s><unk> <| endoftext |>",
    "!!!???...---___===+++***///\\\\\\|||```~~~^^^@@@###$$$%%%&&&((()))[[[]]]{{{}}}<<<>>>;;;:::,,,\"\"\"'''",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" * 4,
    " " * 100 + "x" + "\n" * 50 + "\t" * 30,
    "supercalifragilisticexpialidocious antidisestablishmentarianism Llanfairpwllgwyngyll",
    "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α ∧ ¬β → ∑_{i=0}^{n} √π ≤ ∞ €£¥₹ ©®™ °C",
    "\U0001d4d7\U0001d4ee\U0001d4f5\U0001d4f5\U0001d4f8 \U00010348 \U00020000 \U000e0041",
    "it's'd've're'llm's'S 'T ''s '\u00e9t\u00e9 a'b'c s'",
    "mixed\u0661\u0662abc123def\u00b2ghi_jkl-mno \u0300\u0301 \u0300",
]


def main(path):
    content = Path(path).read_bytes()
    tokens, at = [], 1024
    while at < len(content):
        tokens.append(content[at + 1 : at + 1 + content[at]])
        at += 1 + content[at]
    encoding = tiktoken.Encoding(
        "gpt2",
        pat_str=PATTERN,
        mergeable_ranks={t: i for i, t in enumerate(tokens[:-1])},
        special_tokens={"<|endoftext|>": len(tokens) - 1},
    )
    cases = [json.dumps({"text": text, "gpt2": encoding.encode_ordinary(text)}) for text in TEXTS]
    made = f"make_hard_texts.py with tiktoken {tiktoken.__version__}"
    out = Path(__file__).with_name("hard_texts.json")
    out.write_text('{"made by": ' + json.dumps(made) + ',\n "cases": [\n' + ",\n".join(cases) + "\n]}\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
