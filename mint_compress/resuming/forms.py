"""How what a stage gives is kept: as plain values and tensors, from which it is read back as it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from mint_compress.graph.groups import ChannelGroup
from mint_compress.planning.planned import Planned
from mint_compress.reporting.records import LayerTime, Trial
from mint_compress.scoring.scores import ChannelScores
from mint_compress.surgery.pruning_plan import PruningPlan
from mint_compress.training.tasks.protocol import Measurement

Result = TypeVar("Result")
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Form(Generic[Result]):
    """A result as a value that JSON holds, and tensors by name; and back."""

    write: Callable[[Result], tuple[Any, Tensors]]
    read: Callable[[Any, Tensors], Result]


def _scores(value: Any, tensors: Tensors) -> ChannelScores:
    return ChannelScores(tensors, **value)


SCORES = Form(
    lambda scores: (
        {"estimator": scores.estimator, "images": scores.images, "seed": scores.seed},
        scores.nats,
    ),
    _scores,
)


def _measurement(value: Any, _: Tensors) -> Measurement:
    return Measurement(value["value"], value["details"], tuple(value["classes"]), tuple(value["support"]))


MEASUREMENT = Form[Measurement](lambda one: (asdict(one), {}), _measurement)


def plan_of(groups: Sequence[ChannelGroup]) -> Form[Planned]:
    """A plan, and the channel groups as they are once it has stood its trial: some are left alone then."""

    def write(result: Planned) -> tuple[Any, Tensors]:
        left_alone = {g.name: g.reason for g in result.groups if not g.prunable}
        trials, layers = ([asdict(one) for one in part] for part in (result.trials, result.layer_ms))
        plan = result.plan.to_dict()
        return {"plan": plan, "left alone": left_alone, "trials": trials, "layer ms": layers}, {}

    def read(value: Any, _: Tensors) -> Planned:
        reasons = value["left alone"]
        tried = [g.left_alone(reasons[g.name]) if g.prunable and g.name in reasons else g for g in groups]
        trials = tuple(Trial(**one) for one in value["trials"])
        layers = tuple(LayerTime(**one) for one in value["layer ms"])
        return Planned(PruningPlan.from_dict(value["plan"]), tried, trials, layers)

    return Form(write, read)


def weights_of(model: nn.Module) -> Form[bool]:
    """Whether a stage changed the network in place; if it did, the weights that it left."""

    def write(changed: bool) -> tuple[Any, Tensors]:
        state = model.state_dict() if changed else {}
        return changed, {name: value for name, value in state.items() if isinstance(value, Tensor)}

    def read(changed: Any, tensors: Tensors) -> bool:
        if changed:
            model.load_state_dict({**model.state_dict(), **tensors})
        return bool(changed)

    return Form(write, read)
