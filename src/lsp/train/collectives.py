"""What crosses between devices in one step, read from the text of a compiled program.

A program is a list of computations; those that a `while` loop repeats count as often as it turns, which the compiler
knows and writes down, and every branch of a choice counts once.
"""

import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from math import prod
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Bytes of an element by the name of its type; what is not here is one byte wide.
WIDTHS = {"16": 2, "32": 4, "64": 8, "128": 16}
# A TPU program runs a reduce-scatter as a fusion of this name, around an all-reduce that it never finishes.
SCATTER = "all-reduce-scatter"

OPERATION = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
CALL = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%([\w.-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
ARRAY = re.compile(r"\b(pred|bf16|[a-z]\d+\w*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """`times` operations a step, over groups of `group` devices. `shapes` are those of the results (for a
    reduce-scatter, of what is reduced); `bytes` is what a device sends in all of them."""

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    group: int
    times: int
    bytes: int


def collectives(program: str, devices: int) -> list[Collective]:
    """Every operation between devices of a compiled program (`compiled.as_text()`), those with a group of one left out.

    Bytes sent by a device are those of ring algorithms (Thakur et al., 2005): 2·(n-1)/n of the array for an all-reduce,
    (n-1)/n for all-gather, reduce-scatter and all-to-all, all of it for a permutation.
    """
    computations, entry = _computations(program)
    found: dict[object, Collective] = {}
    for name, times in _repeats(computations, entry).items():
        for line in computations[name]:
            match = OPERATION.search(line)
            if match is None:
                continue
            kind = "reduce-scatter" if SCATTER in name else match[2]
            arrays = _arrays(match[1], match[3] is not None and match[2] != "all-reduce")
            group = _group(line, devices)
            sent = sum(size * width for size, width in ((prod(shape), width) for shape, width in arrays))
            if kind == "reduce-scatter" and match[2] == kind:  # here the result is the scattered part
                sent *= group
            share = {"all-reduce": 2 * (group - 1) / group, "collective-permute": 1.0}.get(kind, (group - 1) / group)
            # The steps of one asynchronous operation on a TPU are written as several, with its channel and chain.
            chain = re.search(r'channel_id=(\d+).*chain_id="(\d+)"', line)
            once = (kind, chain.groups()) if chain else (name, line)
            if group > 1 or kind == "collective-permute":
                shapes = tuple(shape for shape, _ in arrays)
                found[once] = Collective(kind, shapes, group, times, round(times * sent * share))
    return list(found.values())


def by_kind(found: Iterable[Collective]) -> list[dict[str, object]]:
    """Counts and bytes sent by a device, a row for each kind, the heaviest first."""
    counts: Counter[str] = Counter()
    sent: Counter[str] = Counter()
    for each in found:
        counts[each.kind] += each.times
        sent[each.kind] += each.bytes
    return [{"collective": kind, "count": counts[kind], "bytes": total} for kind, total in sent.most_common()]


def _computations(program: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation, and the name of the one that runs."""
    found: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in program.splitlines():
        head = re.match(r"(ENTRY )?%([\w.-]+) \(.*\{$", line)
        if head:
            lines = found[head[2]] = []
            entry = head[2] if head[1] else entry
        elif line.startswith(" "):
            lines.append(line)
    return found, entry


def _repeats(computations: dict[str, list[str]], entry: str) -> Counter[str]:
    """How often each computation runs."""
    callers: dict[str, list[tuple[str, int]]] = {name: [] for name in computations}
    for name, lines in computations.items():
        for line in lines:
            turns = TURNS.search(line)
            branches = ",".join(BRANCHES.findall(line)).replace("%", "").replace(" ", "").split(",")
            for called in [*CALL.findall(line), *branches]:
                if called in callers:
                    callers[called].append((name, int(turns[1]) if turns else 1))

    @cache
    def runs(name: str) -> int:
        return 1 if name == entry else sum(turns * runs(caller) for caller, turns in callers[name])

    return Counter({name: runs(name) for name in computations if runs(name)})


def _arrays(text: str, started: bool) -> list[tuple[tuple[int, ...], int]]:
    """Shapes and element sizes of a result. One that is `started` holds its operands first and counters last."""
    arrays = [
        (tuple(int(side) for side in sides.split(",") if side), WIDTHS.get(re.sub(r"^\D+", "", kind), 1))
        for kind, sides in ARRAY.findall(text)
        if not (started and kind == "u32" and not sides)
    ]
    return arrays[len(arrays) // 2 :] if started else arrays


def _group(line: str, devices: int) -> int:
    """How many devices take part in one operation: replica groups are listed, counted, or axes of a mesh."""
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return match[1].count(",") + 1
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[([^\]]+)\][^{]*\{([^}]+)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    return devices
