"""How kernels are called: names that do not fit together end the build, and C says the same in gpt2c.h and in the kernels."""

import re
from pathlib import Path

import generate
import pytest

from gpt2c import _core

KERNELS = Path(generate.__file__).parent
HEADER, DEFINITIONS = ((KERNELS / name).read_text() for name in ("gpt2c.h", "kernels.def"))
FUNCTIONS = {function.name: function for function in generate.functions_of(HEADER)}
STRUCTS = generate.structs_of(HEADER)


def test_every_function_of_the_header_has_a_door_or_says_how_much_scratch():
    declared = re.findall(r"^(void|size_t) FN\((\w+)\)", HEADER, re.M)
    assert {name for result, name in declared if result == "void"} == {*_core.DOORS}
    assert all(name.endswith("_scratch") for result, name in declared if result == "size_t")
    assert [name for _, name in declared] == [*FUNCTIONS]


def test_the_kernels_are_defined_as_they_are_declared():
    """A size that changes its place in one of the two would be another size."""
    defined = [f for path in sorted(KERNELS.glob("*.c")) for f in generate.functions_of(path.read_text(), end=r"\{")]
    assert {f.name: f for f in defined} == FUNCTIONS and len(defined) == len(FUNCTIONS)


@pytest.mark.parametrize("name", _core.DOORS)
def test_parameters_come_in_the_order_of_the_convention(name):
    """Outputs, const inputs, sizes, scalars, add, scratch."""
    letters = _core.DOORS[name].letters

    def rank(parameter):
        if parameter.name == "scratch":
            return 5
        if parameter.type.endswith("*"):
            return parameter.type.startswith("const ")
        return 2 if parameter.name in letters else 4 if re.match("add(_|$)", parameter.name) else 3

    parameters = FUNCTIONS[name].parameters
    struct = STRUCTS.get(parameters[0].type.removeprefix("const ").removesuffix("*"), [])
    ranks = [rank(parameter) for parameter in struct + parameters[bool(struct) :]]
    assert ranks == sorted(ranks)


# ---- the generator, on a kernel of its own

NORM_H = """
// out = x w, and the rows that are
void FN(norm)(float* out, float* rows, const float* x, const int32_t* at, int64_t R, int64_t C,
             int64_t step, float eps, float* scratch);
size_t FN(norm_scratch)(int64_t C, int64_t D);
"""
NORM_DEF = """
norm  out:R,C rows?:R  # two
    | x:R,C at:R:i | eps:f=1 step:n | C%R
    scratch: norm_scratch(D=C/R)
"""


def lines(text):
    return re.findall(r'KERNEL\(\w+, ".*\)', text)


def test_each_parameter_is_filled_by_its_name():
    door = '"out:R,C rows?:R | x:R,C at:R:i | eps:f=1 step:n | C%R"'
    made = generate.calls(NORM_DEF, NORM_H)
    arguments = "p[0], p[1], p[2], p[3], n[0], n[1], n[2], f[0], scratch"
    assert lines(made) == [f"KERNEL(norm, {door}, k->norm_scratch(n[1], n[1]/n[0]), ({arguments}))"]
    assert "MAX_ARRAYS = 4, MAX_SIZES = 3, MAX_SCALARS = 1" in made
    other = NORM_H.replace("int64_t R, int64_t C,", "int64_t C, int64_t R,").replace(
        "float* out, float* rows", "float* rows, float* out"
    )
    assert lines(generate.calls(NORM_DEF, other))[0].endswith("(p[1], p[0], p[2], p[3], n[1], n[0], n[2], f[0], scratch))")


def test_members_of_a_struct_are_filled_by_their_names():
    header = """
        typedef struct {
            const float *b, *a;  // two
            int64_t R;
            float* out;
        } Sum;
void FN(sum)(const Sum* s);
"""
    made = generate.calls("sum  out:R | a:R b:R", header)
    assert lines(made) == ['KERNEL(sum, "out:R | a:R b:R", 0, (&(Sum){.b = p[2], .a = p[1], .R = n[0], .out = p[0]}))']


REFUSED = {
    "a parameter that the door does not have": (
        "h", "float eps", "float epsilon", "norm: gpt2c.h has epsilon, kernels.def has nothing of that name"),
    "an argument that no parameter takes": (
        "h", "int64_t step, ", "", "norm: kernels.def has step, in gpt2c.h no parameter has that name"),
    "an array that no parameter takes": (
        "def", "x:R,C", "x:R,C y:R,C", "norm: kernels.def has y, in gpt2c.h no parameter has that name"),
    "an output that is const": (
        "h", "float* rows", "const float* rows", "norm: rows is const float* in gpt2c.h, float* by kernels.def"),
    "an input that is not": (
        "h", "const float* x", "float* x", "norm: x is float* in gpt2c.h, const float* by kernels.def"),
    "integers for reals": (
        "def", "at:R:i", "at:R", "norm: at is const int32_t* in gpt2c.h, const float* by kernels.def"),
    "a whole scalar for a real one": (
        "h", "float eps", "int64_t eps", "norm: eps is int64_t in gpt2c.h, float by kernels.def"),
    "a size that is no int64_t": (
        "h", "int64_t R, int64_t C,", "int R, int64_t C,", "norm: R is int in gpt2c.h, int64_t by kernels.def"),
    "scratch that nothing says": (
        "def", "scratch: norm_scratch(D=C/R)", "", "norm: gpt2c.h has scratch, kernels.def has nothing of that name"),
    "scratch that nobody takes": (
        "h", ", float* scratch", "", "norm: kernels.def has scratch, in gpt2c.h no parameter has that name"),
    "a scratch function that does not exist": (
        "def", "norm_scratch", "norm_room", "norm: its scratch is 'norm_room(D=C/R)', which gpt2c.h has no function for"),
    "a scratch function's parameter that is no size": (
        "def", "(D=C/R)", "()", "norm: norm_scratch needs D, which is no size of the kernel"),
    "a parameter that a scratch function does not have": (
        "def", "(D=C/R)", "(D=C/R, E=C)", "norm: norm_scratch has no parameter named E"),
    "a kernel without a door": (
        "h", "size_t", "void FN(other)(float* out);\nsize_t", "other is in gpt2c.h, but not in kernels.def"),
    "a door without a kernel": (
        "def", "norm  ", "other  out:R\nnorm  ", "other is in kernels.def, but not in gpt2c.h"),
    "a kernel twice": (
        "def", "norm  ", "norm  out:R\nnorm  ", "norm is in kernels.def twice"),
    "a name twice": (
        "def", "eps:f=1", "eps:f=1 at:n", "norm: two arguments are named at"),
    "a rule on what is not there": (
        "def", "C%R", "C%H", "norm: a rule names H, which is none of the arguments"),
    "a need of what is not there": (
        "def", "C%R", "rows->moe", "norm: a rule names moe, which is none of the arguments"),
    "a slip": (
        "def", "rows?:R", "rows:?R", "norm: what is '?R'?"),
}  # fmt: skip


@pytest.mark.parametrize("where, old, new, message", REFUSED.values(), ids=REFUSED)
def test_refused(where, old, new, message):
    texts = {"def": NORM_DEF, "h": NORM_H}
    assert texts[where].count(old) == 1
    texts[where] = texts[where].replace(old, new)
    with pytest.raises(ValueError) as raised:
        generate.calls(texts["def"], texts["h"])
    assert str(raised.value) == message


def test_the_build_ends_with_the_message(tmp_path, monkeypatch):
    (tmp_path / "kernels.def").write_text(NORM_DEF.replace("eps:f", "eps:n"))
    (tmp_path / "gpt2c.h").write_text(NORM_H)
    monkeypatch.setattr(generate, "HERE", tmp_path)
    with pytest.raises(SystemExit, match="^kernels: norm: eps is float in gpt2c.h, int64_t by kernels.def$"):
        generate.main()
