"""Tables of what ``benchmarks/rewrites.py`` measured."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

PEERS = ("FP32", "BF16", "NNCF", "ORT quantizer")
TITLES = (*PEERS, "INT8", "rewritten FP32", "tuned")
Row = Mapping[str, Any]


def tables(rows: Sequence[Row]) -> str:
    """Markdown: a table for each engine, number of threads and way of timing, then each rewrite's gain."""
    parts = []

    def setting(row: Row) -> tuple[Any, ...]:
        return row["machine"], row["engine"], row["threads"], row["whole"]

    for (machine, engine, threads, whole), found in groupby(sorted(rows, key=setting), setting):
        of = "uint8 image to answer" if whole else "tensor to tensor"
        some = sorted(found, key=lambda row: ratio(row))
        head = f"{engine}, {threads} thread(s), batch 1, {of}, median ms; {machine}"
        parts.append("\n".join([head, "", *latencies(some), "", *summary(some), "", *gains(some), ""]))
    return "\n".join(parts)


def best_peer(row: Row) -> float:
    """Milliseconds of the fastest that others offer."""
    return min(ms for title, ms in row["times"].items() if title in PEERS)


def ratio(row: Row) -> float:
    """Ours over the best peer."""
    return row["times"]["tuned"] / best_peer(row)


def latencies(rows: Sequence[Row]) -> Iterator[str]:
    yield "| model | " + " | ".join(TITLES) + " | tuned / best peer | kept |"
    yield "|---" + "|---:" * (len(TITLES) + 1) + "|---|"
    for row in rows:
        cells = [f"{row['times'][title]:.2f}" if title in row["times"] else "-" for title in TITLES]
        kept = ", ".join([*dict.fromkeys(trial["rewrite"] for trial in row["kept"]), row["winner"]])
        yield f"| {row['name']} | {' | '.join(cells)} | {ratio(row):.2f} | {kept} |"


def summary(rows: Sequence[Row]) -> Iterator[str]:
    some = {"all": rows, "segmentation": [row for row in rows if row["segmentation"]]}
    for name, chosen in some.items():
        if chosen:
            ratios = [ratio(row) for row in chosen]
            behind = sum(one > 1.02 for one in ratios)
            yield (
                f"- {name}, {len(chosen)} models: tuned over the best peer {geomean(ratios):.2f} "
                f"(geometric mean), worst {max(ratios):.2f}, {behind} behind by more than 2 %; "
                + ", ".join(f"over {title} {text}" for title, text in against(chosen))
            )


def against(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    for title in (*PEERS, "INT8"):
        pairs = [row["times"]["tuned"] / row["times"][title] for row in rows if title in row["times"]]
        if pairs:
            yield title, f"{geomean(pairs):.2f}"
    layout = geomean([row["times"]["rewritten FP32"] / row["times"]["FP32"] for row in rows])
    yield "FP32 by layout alone (rewritten FP32 over FP32)", f"{layout:.2f}"


def gains(rows: Sequence[Row]) -> Iterator[str]:
    """What each rewrite brought to the INT8 file where it was kept, in its own race."""
    found: dict[tuple[str, str], list[tuple[float, str]]] = defaultdict(list)
    for row in rows:
        for trial in row["kept"]:
            found[trial["rewrite"], trial["form"]].append((trial["ratio"], row["name"]))
    if not found:
        return
    yield "| rewrite | form | models | time with it over time without |"
    yield "|---|---|---|---|"
    for (rewrite, form), pairs in sorted(found.items()):
        names = ", ".join(f"{name} {value:.2f}" for value, name in sorted(pairs))
        yield f"| {rewrite} | {form} | {len({name for _, name in pairs})} | {names} |"


def geomean(values: Sequence[float]) -> float:
    """Geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))
