"""What a pruning plan is: data, and a JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mint_compress.errors import MintError

PLAN_FORMAT = 1


@dataclass(frozen=True)
class GroupCut:
    """The positions of one group that stay and that go, ascending."""

    group: str
    kept: tuple[int, ...]
    removed: tuple[int, ...]


@dataclass(frozen=True)
class LayerCut:
    """The channels that go from one side of one layer, ascending."""

    layer: str
    kind: str
    side: str
    dim: int
    total: int
    removed: tuple[int, ...]


@dataclass(frozen=True)
class PruningPlan:
    """Which positions go, what that means for every layer, and what will be left.

    Attributes
    ----------
    asked, asked_macs
        Shares of the parameters and of the MACs that were asked for; None where none was.
    removed
        Share of the parameters that will go.
    parameters, macs
        (before, after) of the whole network; MACs of one sample.
    layers
        Layer -> (parameters before, after), for every layer that has any.
    round_to
        The step of widths that was kept, if one was.
    sizes
        Module -> attribute -> its new value, of sizes that modules keep and their forward passes read.
    """

    asked: float | None
    removed: float
    parameters: tuple[int, int]
    macs: tuple[int, int]
    groups: tuple[GroupCut, ...] = field(repr=False)
    cuts: tuple[LayerCut, ...] = field(repr=False)
    layers: Mapping[str, tuple[int, int]] = field(repr=False)
    asked_macs: float | None = None
    sizes: Mapping[str, Mapping[str, int | list[int]]] = field(repr=False, default_factory=dict)
    round_to: int | None = None

    @property
    def gone(self) -> dict[str, tuple[int, int]]:
        """Layer -> (input channels, output channels) that go; of a layer whose channels are both, outputs."""
        counts: dict[str, tuple[int, int]] = {}
        for cut in self.cuts:
            inside, outside = counts.get(cut.layer, (0, 0))
            gone = len(cut.removed)
            counts[cut.layer] = (inside + gone, outside) if cut.side == "in" else (inside, outside + gone)
        return counts

    @property
    def left(self) -> dict[str, int]:
        """Layer, or bare parameter that loses channels, -> parameters that are left."""
        return {name: after for name, (_, after) in self.layers.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with the format's version."""
        return {"format": PLAN_FORMAT, **asdict(self)}

    @staticmethod
    def from_dict(data: Any) -> PruningPlan:
        """Read what :meth:`to_dict` gave.

        Raises
        ------
        MintError
            When it is not a plan, or one of a newer version.
        """
        if not isinstance(data, dict) or "cuts" not in data:
            raise MintError("This is not a pruning plan. Write one with --dry-run.")
        if data.get("format") != PLAN_FORMAT:
            raise MintError(
                f"The plan has format {data.get('format')!r}; this version reads {PLAN_FORMAT}. "
                "Update mint-compress, or write the plan again with --dry-run."
            )
        try:
            groups = tuple(
                GroupCut(str(g["group"]), _ints(g["kept"]), _ints(g["removed"])) for g in data["groups"]
            )
            cuts = tuple(
                LayerCut(
                    str(c["layer"]),
                    str(c["kind"]),
                    str(c["side"]),
                    int(c["dim"]),
                    int(c["total"]),
                    _ints(c["removed"]),
                )
                for c in data["cuts"]
            )
            before, after = _ints(data["parameters"])
            macs_before, macs_after = _ints(data["macs"])
            layers = {str(n): (int(c[0]), int(c[1])) for n, c in data["layers"].items()}
            removed = float(data["removed"])
            asked, asked_macs = _share(data["asked"]), _share(data.get("asked_macs"))
            sizes = {
                str(n): {str(a): _size(v) for a, v in own.items()} for n, own in data.get("sizes", {}).items()
            }
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
            raise MintError(
                f"The pruning plan is damaged ({error}). Write it again with --dry-run."
            ) from None
        return PruningPlan(
            asked,
            removed,
            (before, after),
            (macs_before, macs_after),
            groups,
            cuts,
            layers,
            asked_macs,
            sizes,
            None if data.get("round_to") is None else int(data["round_to"]),
        )

    def to_json(self) -> str:
        """The plan as a JSON document."""
        return json.dumps(self.to_dict())

    @staticmethod
    def from_json(text: str) -> PruningPlan:
        """Read what :meth:`to_json` gave."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            raise MintError("This is not a pruning plan (not JSON). Write one with --dry-run.") from None
        return PruningPlan.from_dict(data)


def _share(value: Any) -> float | None:
    return None if value is None else float(value)


def _size(value: Any) -> int | list[int]:
    return list(_ints(value)) if isinstance(value, list) else int(value)


def _ints(values: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in values)
