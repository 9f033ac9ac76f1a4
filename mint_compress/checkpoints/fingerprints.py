"""Which known architectures have the keys and shapes of a state_dict, without building them all.

``architectures.json`` holds, for every zoo, torchvision and timm builder, a hash of the names in its
state_dict, a sketch of them (which finds the nearest builder), a hash of the shapes outside
the classifier head, and the input shape. Write it again after an update of torchvision or timm:

    python -m mint_compress.checkpoints.fingerprints
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from mint_compress.checkpoints.building import outline
from mint_compress.checkpoints.registry import TIERS, known_builders, original_input_shape
from mint_compress.errors import MintError

log = logging.getLogger(__name__)

TABLE = Path(__file__).with_name("architectures.json")

# torchvision builds these, or not, by an argument; files come with and without
AUXILIARY = ("AuxLogits.", "aux1.", "aux2.", "aux_classifier.")

# names kept per sketch: two networks that share half their names are told from strangers, and
# 1,500 sketches stay a small file
SKETCH = 32
HASH_BYTES = 3

Shapes = Mapping[str, Sequence[int]]


def essential(keys: Iterable[str]) -> list[str]:
    """The names, sorted, without batch counters (older files lack them) and auxiliary heads."""
    return sorted(k for k in keys if not k.endswith("num_batches_tracked") and not k.startswith(AUXILIARY))


def key_hash(keys: Iterable[str]) -> str:
    """A hash of the set of names."""
    return hashlib.sha256("\n".join(essential(keys)).encode()).hexdigest()[:16]


def body_hash(shapes: Shapes, head: Iterable[str]) -> str:
    """A hash of names and shapes outside the classifier head, whose size differs from file to file."""
    names = [k for k in essential(shapes) if k not in set(head)]
    text = "\n".join(f"{k} {tuple(shapes[k])}" for k in names)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def sketch(keys: Iterable[str]) -> list[bytes]:
    """The smallest hashes of the names: a bottom-k sketch (Cohen and Kaplan 2007)."""
    hashes = {hashlib.sha256(k.encode()).digest()[:HASH_BYTES] for k in essential(keys)}
    return sorted(hashes)[:SKETCH]


def similarity(one: Sequence[bytes], other: Sequence[bytes]) -> float:
    """Estimated share of names that two sets have in common (Jaccard), from their sketches."""
    smallest = sorted({*one, *other})[:SKETCH]
    both = set(one) & set(other)
    return sum(h in both for h in smallest) / max(len(smallest), 1)


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(TABLE.read_text())
    return table


def tier(name: str) -> int:
    """Where a builder's name stands in the order zoo, torchvision, timm."""
    return TIERS.index(name.partition(":")[0])


def candidates(shapes: Shapes) -> list[str]:
    """Builders with these names and, outside the head, these shapes: zoo, torchvision, then timm."""
    family = _table()["families"].get(key_hash(shapes))
    if family is None:
        return []
    wanted = body_hash(shapes, family["head"])
    return sorted((n for n, (body, _) in family["builders"].items() if body == wanted), key=tier)


def closeness(keys: Iterable[str]) -> float:
    """Estimated share of names that these have in common with the builder that resembles them most."""
    own = sketch(keys)
    return max(similarity(own, _decode(family["sketch"])) for family in _table()["families"].values())


def nearest(shapes: Shapes, stem: str) -> str:
    """The builder whose names resemble these most; among equals the one that ``stem`` mentions."""
    families = _table()["families"]
    names = essential(shapes)
    own = sketch(names)

    def resemblance(key: str) -> tuple[float, int, int]:
        family = families[key]
        score = similarity(own, _decode(family["sketch"]))
        # equal sketches: the closest in size; then the tier of its first builder
        return score, -abs(family["keys"] - len(names)), -min(map(tier, family["builders"]))

    best = max(families, key=resemblance) if (same := key_hash(names)) not in families else same
    builders = families[best]["builders"]
    return mentioned(stem, builders) or sorted(builders, key=tier)[0]


def mentioned(stem: str, names: Iterable[str]) -> str | None:
    """The one builder with the longest name inside the file name ``stem``, if there is just one."""
    found = [n for n in names if n.partition(":")[2].lower() in stem.lower()]
    longest = max((len(n.partition(":")[2]) for n in found), default=0)
    best = sorted((n for n in found if len(n.partition(":")[2]) == longest), key=tier)
    return best[0] if best and [tier(n) for n in best].count(tier(best[0])) == 1 else None


def input_shape(name: str) -> tuple[int, ...] | None:
    """The input shape, without the batch, that a builder was made for."""
    for family in _table()["families"].values():
        if name in family["builders"]:
            return tuple(family["builders"][name][1])
    return None


def _decode(text: str) -> list[bytes]:
    joined = base64.b64decode(text)
    return [joined[i : i + HASH_BYTES] for i in range(0, len(joined), HASH_BYTES)]


def generate(names: Iterable[str]) -> dict[str, Any]:
    """Build every named architecture (on the meta device where it can be) and take its fingerprint."""
    found: list[tuple[str, dict[str, tuple[int, ...]], set[str], tuple[int, ...]]] = []
    for name in names:
        try:
            shapes = outline(name, {})
            # 7 classes: no builder's default, so what changes is the head
            classified = outline(name, {"num_classes": 7})
            shape = original_input_shape(name)
        except MintError as error:
            log.warning("left out: %s", error)
            continue
        head = {k for k in essential(classified) if shapes.get(k) != classified[k]}
        found.append((name, shapes, head & shapes.keys(), shape))
        if shapes.keys() != classified.keys():
            # without a head unless it is asked for
            found.append((name, classified, head, shape))
        log.info("%s: %d tensors", name, len(shapes))
    families: dict[str, Any] = {}
    for _, shapes, head, _ in found:
        family = families.setdefault(key_hash(shapes), {"head": set(), "builders": {}})
        family["head"] |= head
        family["sketch"] = base64.b64encode(b"".join(sketch(shapes))).decode()
        family["keys"] = len(essential(shapes))
    for name, shapes, _, shape in found:
        family = families[key_hash(shapes)]
        family["builders"][name] = [body_hash(shapes, family["head"]), shape]
    for family in families.values():
        family["head"] = sorted(family["head"])
    versions = {p: metadata.version(p) for p in ("torch", "torchvision", "timm")}
    return {"versions": versions, "families": dict(sorted(families.items()))}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the table; ``--output`` elsewhere than into the package."""
    parser = argparse.ArgumentParser(
        prog="python -m mint_compress.checkpoints.fingerprints", description=main.__doc__
    )
    parser.add_argument("--output", type=Path, default=TABLE)
    output = parser.parse_args(argv).output
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    table = generate(known_builders())
    temporary = output.with_suffix(".tmp")
    temporary.write_text(json.dumps(table, separators=(",", ":")) + "\n")
    os.replace(temporary, output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
