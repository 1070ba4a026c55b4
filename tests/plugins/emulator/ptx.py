"""Translates the PTX that nvcc makes of the kernels into C++ for the emulator.

The emulated kernels are the source as g++ compiles it; what a GPU runs has gone through NVIDIA's compiler.
Translated, its instructions run under the same schedules and checks: the roundings that it chose, the order
of its loads and stores, their alignment, and a shared memory with known bounds. Not looked at is what ptxas
makes of PTX.

Only what the kernels use is known, anything else is an error: a sum that ptxas may fuse with a product (no
`.rn`), too. What each instruction does: NVIDIA, PTX ISA 9.0; in C++: ptx.hpp.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

TYPES = {f"{kind}{bits}": f"uint{bits}_t" for kind in "bu" for bits in (16, 32, 64)}
TYPES |= {f"s{bits}": f"int{bits}_t" for bits in (16, 32, 64)}
TYPES |= {"f32": "float", "f64": "double", "pred": "bool"}

# {a}, {b}, {c}: the operands after the destination; {b_u32}: read as u32; {U}: the unsigned type, whose sums
# wrap around.
EVERY_TYPE = {"mov": "{a}", "selp": "{c_pred} ? {a} : {b}"}
OPERATIONS = {
    "pred": {
        "and": "{a} && {b}",
        "or": "{a} || {b}",
        "not": "!{a}",
        "vote.sync.any": "__any_sync({b_u32}, {a})",
        "bar.red.or": "__syncthreads_or({a}) != 0",
    },
    "float": {
        "add.rn": "{a} + {b}",
        "sub.rn": "{a} - {b}",
        "mul.rn": "{a} * {b}",
        "div.rn": "{a} / {b}",
        "neg": "-{a}",
        "abs": "abs({a})",
        "min": "min({a}, {b})",
        "max": "max({a}, {b})",
    },
    "integer": {
        "add": "{U}({a}) + {U}({b})",
        "sub": "{U}({a}) - {U}({b})",
        "mul.lo": "{U}({a}) * {U}({b})",
        "mad.lo": "{U}({a}) * {U}({b}) + {U}({c})",
        "div": "{a} / {b}",
        "neg": "-{U}({a})",
        "min": "min({a}, {b})",
        "max": "max({a}, {b})",
        "and": "{a} & {b}",
        "or": "{a} | {b}",
        "not": "~{a}",
        "shl": "shl({a}, {b_u32})",
        "shr": "shr({a}, {b_u32})",
        "popc": "uint32_t(__builtin_popcountll({a}))",
        "cvta.to.global": "{a}",
    },
}
# Of one type alone.
SINGLE_OPERATIONS = {
    "bfind.shiftamt.u32": "shift_of({a})",
    "brev.b32": "reversed({a})",
    "bfi.b32": "uint32_t(inserted({a}, {b}, {c_u32}, {d_u32}))",
    "bfi.b64": "inserted({a}, {b}, {c_u32}, {d_u32})",
    "shf.l.wrap.b32": "funnel_left({a}, {b}, {c})",
    "vote.sync.ballot.b32": "__ballot_sync({b}, {a_pred})",
    "shfl.sync.idx.b32": "shuffle_idx({a}, {b}, {c}, {d}, {inside})",
    "shfl.sync.up.b32": "shuffle_up({a}, {b}, {c}, {d}, {inside})",
    "shfl.sync.bfly.b32": "shuffle_bfly({a}, {b}, {c}, {d}, {inside})",
    "atom.global.add.u32": "add_global({a_address}, {b})",
    "atom.shared.or.b32": "or_shared(shared, {a_shared}, {b})",
}
CONVERSIONS = {
    "rn.f32.f64": "static_cast<float>({a})",
    "rn.f64.u64": "static_cast<double>({a})",
    "f64.f32": "static_cast<double>({a})",
    "f32.f16": "__half2float({{{a}}})",
    "rzi.s32.f64": "truncated({a})",
}
COMPARISONS = {
    **{"eq": "{a} == {b}", "lt": "{a} < {b}", "le": "{a} <= {b}", "gt": "{a} > {b}", "ge": "{a} >= {b}"},
    # True, too, where one is NaN.
    **{"ltu": "!({a} >= {b})", "leu": "!({a} > {b})", "gtu": "!({a} <= {b})", "geu": "!({a} < {b})"},
}
SPECIAL = {"%tid.x": "threadIdx.x", "%ctaid.x": "blockIdx.x", "%nctaid.x": "gridDim.x"}
MOST_SHARED = 48 * 1024  # bytes of a block that does not ask for more


class PtxError(ValueError):
    """An instruction, operand or directive that the translation does not know."""


def translate(ptx: str) -> str:
    """A C++ file with a function for every kernel, which the emulator finds by its mangled name."""
    text = re.sub(r"//[^\n]*", "", ptx)
    parameter = r"\s*\.param \.align \d+ \.b8 (\w+)\[(\d+)\]\s*"
    entry = re.compile(rf"\.visible \.entry (\w+)\({parameter}\)[^{{]*\{{(.*?)\n\}}", re.DOTALL)
    outside = re.sub(r"\.(version|target|address_size) \S+|\s", "", entry.sub("", text))
    if outside:
        raise PtxError(f"outside of kernels with one parameter: {outside[:80]}")
    kernels = [_Kernel(*declared).translate(body) for *declared, body in entry.findall(text)]
    return "\n".join(['#include "ptx.hpp"\n\nnamespace ptx {\n', *kernels, "}  // namespace ptx\n"])


class _Kernel:
    def __init__(self, name: str, parameter: str, parameter_bytes: str) -> None:
        self.name = name
        self.parameter, self.parameter_bytes = parameter, parameter_bytes
        self.shared: dict[str, int] = {}  # where each array begins
        self.shared_bytes = 0

    def translate(self, body: str) -> str:
        lines = []
        for text in _statements(body):
            try:
                lines.append(f"    {self._statement(text)}\n")
            except (PtxError, KeyError, IndexError, ValueError) as error:
                raise PtxError(f"{self.name}: no translation of {text!r}") from error
        return (
            f"static void run_{self.name}(const void* argument) {{\n"
            f"    alignas(16) char parameter[{self.parameter_bytes}];\n"
            "    memcpy(parameter, argument, sizeof parameter);\n"
            f"    const Shared shared{{{self.shared_bytes}}};\n"
            f"{''.join(lines)}}}\n"
            f'static const emulator::Translation {self.name}{{"{self.name}", run_{self.name}, '
            f"{self.parameter_bytes}}};\n"
        )

    def _statement(self, text: str) -> str:
        if text in "{}":
            return text
        if text.endswith(":"):
            return f"{_label(text[:-1])}:;"
        if text.startswith("."):
            return self._directive(text)
        predicate, opcode, operands = _match(r"(@!?%\w+ )?([\w.]+) ?(.*)", text)
        done = self._instruction(opcode, _split(operands))
        if predicate is None:
            return done
        return f"if ({'!' if predicate[1] == '!' else ''}{_register(predicate.strip('@! '))}) {{ {done} }}"

    def _directive(self, text: str) -> str:
        if text.startswith(".pragma"):
            return ""
        if found := re.fullmatch(r"\.reg \.(\w+) (\S+?)(?:<(\d+)>)?", text):
            type_, name, count = found.groups()
            names = [f"{name}{i}" for i in range(int(count))] if count else [name]
            return f"{TYPES[type_]} {', '.join(map(_register, names))};"
        space, align, bits, name, count = _match(
            r"\.(shared|local) \.align (\d+) \.[bus](\d+) ([\w$]+)(?:\[(\d+)\])?", text
        )
        size = int(bits) // 8 * int(count or 1)
        if space == "local":
            return f"alignas({align}) char {name}[{size}];"
        self.shared[name] = -(-self.shared_bytes // int(align)) * int(align)
        self.shared_bytes = self.shared[name] + size
        if self.shared_bytes > MOST_SHARED:
            raise PtxError(f"{self.shared_bytes} bytes of shared memory")
        return ""

    def _instruction(self, opcode: str, operands: list[str]) -> str:
        if opcode in ("bra", "bra.uni"):
            return f"goto {_label(operands[0])};"
        if opcode == "ret":
            return "return;"
        if opcode == "bar.sync" and operands == ["0"]:
            return "__syncthreads();"
        if opcode == "bar.warp.sync":
            return f"__syncwarp({self._value(operands[0], 'u32')});"
        name, type_ = opcode.rsplit(".", 1)
        if name.split(".")[0] in ("ld", "st"):
            return self._memory(name.split("."), type_, operands)
        if opcode == "mov.b64" and "{" in operands[0]:
            low, high = map(_register, _split(operands[0].strip("{}")))
            return f"unpack({self._value(operands[1], type_)}, {low}, {high});"
        if opcode == "mov.b64" and "{" in operands[1]:
            low, high = (self._value(each, "u32") for each in _split(operands[1].strip("{}")))
            return f"{_register(operands[0])} = packed({low}, {high});"
        if opcode == "bar.red.or.pred" and (operands.pop(1) != "0" or len(operands) != 2):
            raise PtxError("another barrier")
        destination, _, inside = operands[0].partition("|")
        if inside and not opcode.startswith("shfl."):
            raise PtxError("two destinations")
        target, template = _operation(name, type_)
        operation = template.format_map(_Operands(self, operands[1:], type_.replace("f16", "b16"), inside))
        return f"put<{TYPES[target]}>({_register(destination)}, {operation});"

    def _memory(self, name: list[str], type_: str, operands: list[str]) -> str:
        strong, pairs = "volatile" in name, "v2" in name
        what, space = (each for each in name if each not in ("volatile", "v2"))
        cell, listed = operands if what == "st" else operands[::-1]
        registers = _split(listed.strip("{}")) if pairs else [listed]
        values = ", ".join(
            _register(each) if what == "ld" else self._value(each, type_) for each in registers
        )
        address = self._address(cell, "u32" if space == "shared" else "u64")
        call = {"ld": "load", "st": "store"}[what]
        match space:
            case "local" | "param":
                return f"{call}_own<{TYPES[type_]}>({address}, {values});"
            case "global" if not pairs:
                return f"{call}_global<{TYPES[type_]}>({address}, {str(strong).lower()}, {values});"
            case "shared" if not pairs:
                return f"{call}_shared<{TYPES[type_]}>(shared, {address}, {str(strong).lower()}, {values});"
        raise PtxError(space)

    def _value(self, operand: str, type_: str) -> str:
        """The operand, read as a C++ value of the PTX type."""
        c = TYPES[type_]
        if operand in SPECIAL:
            return f"{c}({SPECIAL[operand]})"
        if operand.startswith("%"):
            return f"as<{c}>({_register(operand)})"
        if operand.startswith("0f"):
            return f"as<{c}>(uint32_t(0x{operand[2:]}u))"
        if operand.startswith("0d"):
            return f"as<{c}>(uint64_t(0x{operand[2:]}u))"
        if operand in self.shared:
            return f"{c}({self.shared[operand]})"
        if operand == self.parameter:
            return "address_of(parameter)"
        if operand.startswith("__local_depot"):
            return f"address_of({operand})"
        return f"{c}({int(operand) % 2**64}u)"

    def _address(self, operand: str, type_: str) -> str:
        place, offset = _match(r"\[(\S+?)(?:\+(-?\d+))?\]", operand)
        return f"{self._value(place, type_)} + {self._value(offset or '0', type_)}"


def _operation(name: str, type_: str) -> tuple[str, str]:
    """The type of the result, and how it is computed."""
    if name.startswith("cvt."):
        target = name.rsplit(".", 1)[1]
        if name.count(".") == 1 and type_[0] in "us" and target[0] in "us":
            return target, f"static_cast<{TYPES[target]}>({{a}})"
        return target, CONVERSIONS[f"{name}.{type_}".removeprefix("cvt.")]
    if name.startswith("setp."):
        how = name.removeprefix("setp.")
        return "pred", "{a} != {b}" if how == "ne" and not type_.startswith("f") else COMPARISONS[how]
    if name == "mul.wide":
        target = f"{type_[0]}{2 * int(type_[1:])}"
        return target, "{c}({{a}}) * {c}({{b}})".format(c=TYPES[target])
    if one_type := SINGLE_OPERATIONS.get(f"{name}.{type_}"):
        return type_, one_type
    kind = type_ if type_ == "pred" else "float" if type_.startswith("f") else "integer"
    return "u32" if name == "popc" else type_, (EVERY_TYPE | OPERATIONS[kind])[name]


class _Operands(dict[str, str]):
    """What the names in a template stand for."""

    def __init__(self, kernel: _Kernel, operands: list[str], type_: str, inside: str) -> None:
        super().__init__(U=TYPES[type_] if TYPES[type_].startswith("u") else f"u{TYPES[type_]}")
        self._kernel, self._operands, self._type = kernel, operands, type_
        if inside:
            self["inside"] = _register(inside)

    def __missing__(self, key: str) -> str:
        name, _, how = key.partition("_")
        operand = self._operands["abcd".index(name)]
        if how in ("address", "shared"):
            return self._kernel._address(operand, "u64" if how == "address" else "u32")
        return self._kernel._value(operand, how or self._type)


def _statements(body: str) -> Iterator[str]:
    """Labels, instructions and directives without their semicolons, and the braces of scopes."""
    for found in re.finditer(r"\s*(?:(\$?\w+:)|([{}])(?=\s|$)|((?:[^;{}]|\{[^;{}]*\})+);)", body):
        text = " ".join((found[1] or found[2] or found[3]).split())
        if text:
            yield text


def _match(pattern: str, text: str) -> tuple[str, ...]:
    """The groups of a pattern that has to fit the whole text."""
    found = re.fullmatch(pattern, text)
    if found is None:
        raise PtxError(text)
    return found.groups()


def _split(operands: str) -> list[str]:
    """By commas outside of braces."""
    return [operand.strip() for operand in re.split(r",(?![^{]*\})", operands)]


def _register(name: str) -> str:
    (bare,) = _match(r"%?(\w+)", name)
    return f"R{bare}"


def _label(name: str) -> str:
    return name.replace("$", "")
