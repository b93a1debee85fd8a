"""The help of a verb, from the same table that reads its flags."""

import shutil
import textwrap

from gpt2c.commands.config_file import toml_value
from gpt2c.commands.flags import General, key_of, named, table

METAVARS = {bool: "", int: "N", float: "X", str: "TEXT"}
HELP_COLUMN = 34
NOTES = (
    "Long flags ignore case, - and _. --flag=VALUE and --flag VALUE are the same; --no-flag turns a "
    "switch off. The last of a repeated flag counts."
)


def help_text(prog, description, classes, positional=(), defaults=None, everything=True):
    """Usage, description and one entry per flag under the titles of their groups; without `everything` those that matter first,
    where a program says which (flag(main=True))."""
    flags, words = table([*classes, General])
    flags = [f._replace(default=(defaults or {}).get(f.name, f.default)) for f in flags]
    has_few = any(f.meta["main"] for f in flags if f.owner < len(classes))
    few = has_few and not everything
    width = max(shutil.get_terminal_size().columns, 2 * HELP_COLUMN)
    usage = [f"[{metavar(f)}{' ...' if f.many else ''}]" for f in named(positional, flags)]
    sections, title, owner = {}, "flags", 0
    for f in flags:
        if f.owner != owner:
            title, owner = [*classes, General][f.owner].__module__.rpartition(".")[2], f.owner
        title = f.meta["group"] or title
        names = [s for s in f.spellings if (g := words[key_of(s)]) and (g.owner, g.name) == (f.owner, f.name)]
        names = [s for s in names if s not in f.meta["deprecated"]]
        hidden = f.meta["hidden"] or few and not f.meta["main"] or f.name == "help_all" and not has_few
        if names and not hidden:
            sections.setdefault(title, []).append(_help_entry(f, names, width))
    tables = ["\n".join([f"{title}:", *entries]) for title, entries in sections.items()]
    usage = " ".join(["usage:", prog, *usage, "[flags]"])
    more = f"These are the flags that matter first; {prog} --help-all lists all {len(flags)}. " if few else ""
    blocks = [usage, _fill(description, width), *tables, _fill(more + NOTES, width)]
    return "\n\n".join(block for block in blocks if block)


def metavar(f):
    return f.meta["metavar"] or "|".join(filter(None, map(str, f.meta["choices"] or ()))) or METAVARS[f.kinds[-1]]


def _help_entry(f, names, width):
    value = f"[{metavar(f)}]" if bool in f.kinds and metavar(f) else metavar(f)
    left = f"{names[0]} {value}".strip() + (f"  ({', '.join(names[1:])})" if names[1:] else "")
    default = f.meta["default_text"]
    if default is None and f.default not in (None, "", (), []):
        values = f.default if f.many else [f.default]
        default = ", ".join(v if isinstance(v, str) else toml_value(v) for v in values)
    notes = "; ".join([f"default {default}"] * bool(default) + ["may be repeated"] * bool(f.many))
    right = (f.meta["help"] + (f" ({notes})" if notes else "")).strip()
    if len(left) + 4 <= HELP_COLUMN:
        return _fill(right, width, "  " + left.ljust(HELP_COLUMN - 2), HELP_COLUMN).rstrip()
    return (_fill(left, width, "  ", 6) + "\n" + _fill(right, width, " " * HELP_COLUMN, HELP_COLUMN)).rstrip()


def _fill(text, width, first="", indent=0):
    return textwrap.fill(text, width, initial_indent=first, subsequent_indent=" " * indent, break_on_hyphens=False) or first
