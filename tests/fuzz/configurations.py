"""Mutators of configurations: lines lost, doubled, moved, and values that no key means."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

from quantrim.vision.shipped import shipped_file

VALUES = (
    "", "null", "true", "-1", "0", "1e400", ".nan", "9" * 5000, "[]", "{}", "[[[[[]]]]]", "{a: {}}", "text",
    "'\\0'", "!!python/object/apply:os.system [echo]", "&a [*a]", "*nowhere", "2024-01-01", "[1, 2, 3]",
    "{type: subprocess.getoutput, cmd: echo}", "{type: torch.nn.Module}", '"', "- -", "\t", "%", "|", ">",
)  # fmt: skip
_PAIR = re.compile(r"^(\s*(?:- )?[\w.]+:)(.*)$")


def small() -> str:
    """The configuration of the demo, at the size of a test."""
    text = shipped_file("configs", "quick_start/demo.yml").read_text(encoding="utf-8")
    return re.sub(r"count: \d+", "count: 2", re.sub(r"size: \d+", "size: 32", text))


def mutants(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of damaged configurations."""
    for number in range(count):
        rnd = random.Random(seed * 1_000_003 + number)
        lines = small().splitlines()
        for _ in range(rnd.choice([1, 1, 1, 2, 4])):
            _change(lines, rnd)
        data = "\n".join(lines).encode()
        if number % 10 == 9:
            at = rnd.randrange(len(data))
            data = data[:at] + rnd.randbytes(rnd.randrange(1, 9)) + data[at + rnd.randrange(9) :]
        yield f"configuration-{seed}-{number}", data


def _change(lines: list[str], rnd: random.Random) -> None:
    at, kind = rnd.randrange(len(lines)), rnd.randrange(6)
    pair = _PAIR.match(lines[at])
    if kind == 0 and pair:
        lines[at] = f"{pair[1]} {rnd.choice(VALUES)}"
    elif kind == 1 and pair:
        lines[at] = lines[at].replace(pair[1], f"{pair[1][:-1]}x:")
    elif kind == 2:
        lines.insert(rnd.randrange(len(lines)), lines[at])
    elif kind == 3:
        lines[at] = " " * rnd.randrange(9) + lines[at].strip()
    elif kind == 4:
        del lines[at]
    else:
        extra = ["_base_: nowhere.yml", "_base_: [a, b]", f"x: {rnd.choice(VALUES)}", "---", "..."]
        lines.insert(at, rnd.choice(extra))
    if not lines:
        lines.append("")


def read(path: Path) -> None:
    """Read a configuration and build what training builds of it."""
    from quantrim.vision.config import build_data, build_loss, build_model, build_optimizer, load_config

    config = load_config(path)
    data = build_data(config, "train_dataset")
    data[0]
    model = build_model(config, data.num_classes)
    build_loss(config, data.ignore_index)
    build_optimizer(config, model, iterations=2)
