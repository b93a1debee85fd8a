"""Writes calls.h, which says how each kernel is called: setup.py runs this before it compiles.

    python kernels/generate.py CALLS_H

Every parameter of a function in gpt2c.h, or of the struct that it takes, is filled by its name with what the kernel's door in
kernels.def has under that name: a pointer with an array, an int64_t with a size or a whole scalar, a float with a real scalar,
and `scratch` with the scratch. What does not fit together is an error here, so that it cannot be one when a kernel runs.
"""

import re
import sys
from pathlib import Path
from typing import NamedTuple

from door import ANY, DTYPES, STORED, Door

HERE = Path(__file__).parent


class Parameter(NamedTuple):
    type: str  # as in "const float*"
    name: str


class Function(NamedTuple):
    result: str
    name: str
    parameters: list[Parameter]


# ---- C: the part of it that gpt2c.h is written in


def parameters_of(declaration):
    """The parameters or members that a declaration like "const float *x, *w" declares."""
    base, names = re.fullmatch(r"((?:const )?\w+)(.*)", " ".join(declaration.split())).groups()
    stars = [(name.count("*"), name.strip("* ")) for name in names.split(",")]
    return [Parameter(base + count * "*", name) for count, name in stars if name]  # (void) declares none


def functions_of(source, end=";"):
    """The functions of the form FN(name) that C source declares or, where they end in "{", defines."""
    source = re.sub(r"//.*", "", source)
    found = re.findall(r"^(void|size_t) FN\((\w+)\)\(([^)]*)\)\s*" + end, source, re.M)
    return [
        Function(result, name, [p for part in parameters.split(",") for p in parameters_of(part)])
        for result, name, parameters in found
    ]


def structs_of(source):
    """{name: members}"""
    source = re.sub(r"//.*", "", source)
    return {
        name: [p for declaration in body.split(";") if declaration.strip() for p in parameters_of(declaration)]
        for body, name in re.findall(r"typedef struct \{([^}]*)\} (\w+);", source)
    }


# ---- kernels.def


class Line(NamedTuple):
    door: Door
    scratch: str  # "" if the kernel needs none


def lines_of(text):
    """The kernels of kernels.def, each a line and the indented lines that follow it."""
    texts = []
    for line in text.splitlines():
        line = line.partition("#")[0].rstrip()
        if line.startswith(" "):
            texts[-1] += line
        elif line:
            texts.append(line)
    lines = []
    for number, text in enumerate(texts):
        name, _, rest = text.partition(" ")
        door, _, scratch = rest.partition(" scratch:")
        lines.append(Line(Door(number, name, " ".join(door.split())), scratch.strip()))
    return lines


# ---- one to the other


class Given(NamedTuple):
    type: str
    expression: str


def given_by(door):
    """What a door has to give: {name: (type, where it is in a Call)}, counted as stream.pyx counts."""
    given = {
        name: Given(("" if writable else "const ") + ("void" if dtype == ANY else DTYPES[dtype].c) + "*", f"p[{i}]")
        for i, (name, _, _, dtype, writable) in enumerate(door.arrays)
    }
    whole = [name for name, kind, _ in door.scalars if kind == "n"] + [f"{a[0]}_type" for a in door.arrays if a[3] == ANY]
    real = [name for name, kind, _ in door.scalars if kind == "f"]
    given |= {name: Given("int64_t", f"n[{i}]") for i, name in enumerate(door.letters + whole)}
    return given | {name: Given("float", f"f[{i}]") for i, name in enumerate(real)}


def scratch_of(line, functions):
    """The expression for `scratch: function(parameter=expression)`: parameters that are not named there are filled by name."""
    if not line.scratch:
        return "0"
    kernel, given = line.door.name, given_by(line.door)
    match = re.fullmatch(r"(\w+)\(([^()]*)\)", line.scratch)
    function = match and functions.get(match[1])
    if not function or function.result != "size_t":
        raise ValueError(f"{kernel}: its scratch is {line.scratch!r}, which gpt2c.h has no function for")
    stated = dict(part.replace(" ", "").split("=") for part in match[2].split(",") if part)

    def value(word):
        if word[0] not in given or given[word[0]].type != "int64_t":
            raise ValueError(f"{kernel}: {function.name} needs {word[0]}, which is no size of the kernel")
        return given[word[0]].expression

    filled = [re.sub(r"[A-Za-z_]\w*", value, stated.pop(p.name, p.name)) for p in function.parameters]
    if stated:
        raise ValueError(f"{kernel}: {function.name} has no parameter named {', '.join(stated)}")
    return f"k->{function.name}({', '.join(filled)})"


def arguments_of(line, function, structs):
    """The arguments in a call of the kernel."""
    door, taken = line.door, set()
    given = given_by(door)
    if line.scratch:
        given["scratch"] = Given("float*", "scratch")

    def fill(parameter):
        if (struct := parameter.type.removeprefix("const ").removesuffix("*")) in structs:
            return f"&({struct}){{{', '.join(f'.{member.name} = {fill(member)}' for member in structs[struct])}}}"
        found = given.get(parameter.name)
        if not found:
            raise ValueError(f"{door.name}: gpt2c.h has {parameter.name}, kernels.def has nothing of that name")
        if found.type != parameter.type:
            raise ValueError(f"{door.name}: {parameter.name} is {parameter.type} in gpt2c.h, {found.type} by kernels.def")
        taken.add(parameter.name)
        return found.expression

    filled = ", ".join(fill(parameter) for parameter in function.parameters)
    unused = [name for name in given if name not in taken and name not in door.letters]
    if unused:
        raise ValueError(f"{door.name}: kernels.def has {', '.join(unused)}, in gpt2c.h no parameter has that name")
    return filled


def calls(definitions, header):
    """The text of calls.h for the texts of kernels.def and gpt2c.h."""
    lines, structs = lines_of(definitions), structs_of(header)
    functions = {function.name: function for function in functions_of(header)}
    kernels = [name for name, function in functions.items() if function.result == "void"]
    doors = [line.door.name for line in lines]
    for name in sorted({*kernels} ^ {*doors}):
        where, missing = ("gpt2c.h", "kernels.def") if name in kernels else ("kernels.def", "gpt2c.h")
        raise ValueError(f"{name} is in {where}, but not in {missing}")
    if len(doors) > len(kernels):
        raise ValueError(f"{next(name for name in doors if doors.count(name) > 1)} is in kernels.def twice")

    entries = [
        f'KERNEL({line.door.name}, "{line.door.text}", {scratch_of(line, functions)}, '
        f"({arguments_of(line, functions[line.door.name], structs)}))"
        for line in lines
    ]
    scratches = [f"SCRATCH({name})" for name, function in functions.items() if function.result == "size_t"]
    types = [[found.type for found in given_by(line.door).values()] for line in lines]
    most = {
        "ARRAYS": max(sum(t.endswith("*") for t in kernel) for kernel in types),
        "SIZES": max(kernel.count("int64_t") for kernel in types),
        "SCALARS": max(kernel.count("float") for kernel in types),
    }
    return "\n".join([
        "// How each kernel is called. Written by kernels/generate.py from kernels.def and gpt2c.h.",
        "#ifndef GPT2C_CALLS_H",
        "#define GPT2C_CALLS_H",
        "enum { " + ", ".join(f"MAX_{what} = {number}" for what, number in most.items()) + " };",
        "enum { " + ", ".join(f"AS_{name.upper()}" for name in STORED) + " };",
        "// KERNEL(name, door, floats of scratch for each thread, arguments)",
        " \\\n    ".join(["#define KERNELS(KERNEL)", *entries]),
        "// The functions that say how much scratch",
        " \\\n    ".join(["#define SCRATCHES(SCRATCH)", *scratches]),
        "#endif",
        "",
    ])  # fmt: skip


def main():
    try:
        text = calls((HERE / "kernels.def").read_text(), (HERE / "gpt2c.h").read_text())
    except ValueError as error:
        sys.exit(f"kernels: {error}")
    out = Path(sys.argv[1])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)


if __name__ == "__main__":
    main()
