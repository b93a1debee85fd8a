"""Shell completion of verbs and flags: gpt2c completion bash, or zsh.

Add the line eval "$(gpt2c completion bash)" to ~/.bashrc, or with zsh in place of bash to ~/.zshrc, after compinit.
"""

import json
from dataclasses import dataclass
from importlib import resources

from gpt2c.commands.command_line import parse
from gpt2c.errors import UsageError
from gpt2c.support.fields import flag

# The flags come from spellings.json, which docs/make_command_line.py writes from the same fields that read them: neither
# printing this nor a press of TAB loads a model.
SHELLS = "bash", "zsh"
BASH = """_gpt2c() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{verbs}"
    elif [[ $word == -* ]]; then
        case ${{COMP_WORDS[1]}} in
{cases}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o bashdefault -o default -F _gpt2c gpt2c
"""
ZSH = """_gpt2c() {{
    local words_of_verb=""
    if (( CURRENT == 2 )); then
        compadd -- {verbs}
        return
    elif [[ $words[CURRENT] == -* ]]; then
        case $words[2] in
{cases}
        esac
        compadd -- ${{=words_of_verb}}
        return
    fi
    _files
}}
compdef _gpt2c gpt2c
"""


@dataclass
class CompletionConfig:
    shell: str = flag("", "shell to complete in", choices=("", *SHELLS))


def main(argv):
    (config,), _ = parse(argv, [CompletionConfig], "gpt2c completion", __doc__.partition("\n\n")[2], ["shell"])
    if not config.shell:
        raise UsageError("name a shell: gpt2c completion bash, or zsh")
    flags = json.loads(resources.files(__package__).joinpath("spellings.json").read_text(encoding="utf-8"))
    template, variable = (BASH, "words") if config.shell == "bash" else (ZSH, "words_of_verb")
    cases = "\n".join(f'            {verb}) {variable}="{" ".join(spellings)}" ;;' for verb, spellings in flags.items())
    print(template.format(verbs=" ".join(flags), cases=cases), end="")
