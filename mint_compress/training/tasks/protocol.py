"""What a task is: how a network is trained, measured, and compared with another of the same job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from mint_compress.nn.io import Inputs, run
from mint_compress.reporting.records import Metric
from mint_compress.training.tasks.distance import output_distance


@dataclass(frozen=True)
class Measurement:
    """What a meter found.

    Attributes
    ----------
    value
        Of the task's metric; a share where its unit is ``%``.
    details
        Further figures by name, each a share or a number of the metric's unit.
    classes
        The metric of every class, in their order: recall, intersection over union, average precision. None
        for a class that the data do not have. Empty where the task has no classes.
    support
        Samples (pixels, objects) of each class; as long as ``classes``.
    """

    value: float
    details: Mapping[str, float] = field(default_factory=dict)
    classes: tuple[float | None, ...] = ()
    support: tuple[int, ...] = ()


class Meter(Protocol):
    """Adds up batches."""

    def update(self, outputs: Any, targets: Any) -> None:
        """Take in what a network returned, in eval mode, and the targets of the batch, on its device."""

    def compute(self) -> Measurement:
        """What all batches come to."""


@runtime_checkable
class SharedMeter(Meter, Protocol):
    """A meter that processes which share the work can each feed with a part."""

    def add_up_(self) -> None:
        """Take in what those of all processes have counted; every one of them calls this."""


class Task:
    """What a network is for; a task of your own is a subclass that says ``metric``, ``loss`` and ``meter``.

    Attributes
    ----------
    name
        As said after ``--task``.
    metric
        By which networks are compared.
    trained_on_original, measured_on_original
        Whether training, and the metric, go by the original's outputs; the targets of the data are not
        looked at.
    distils
        Whether outputs can be compared with those of a teacher.
    logits
        Which of the outputs' tensors has a logit for every class; None where there are no classes.
    """

    name: ClassVar[str] = "own"
    metric: ClassVar[Metric]
    trained_on_original: ClassVar[bool] = False
    measured_on_original: ClassVar[bool] = False
    distils: ClassVar[bool] = True
    logits: ClassVar[int | None] = None

    def settled(self, outputs: Any, targets: Any, *, asked: bool) -> Task:
        """This task, or one that knows more: it is given some outputs and targets before all else.

        ``asked`` says whether the user named it; if not, what is doubtful is better refused.
        """
        return self

    def check(self, outputs: Any, targets: Any, whose: str, every: Any = None) -> tuple[str, ...]:
        """Hold targets against outputs of the same samples before anything is computed.

        Parameters
        ----------
        outputs
            What the network returned in eval mode.
        targets
            As the data give them.
        whose
            The data, for messages: ``the test data``.
        every
            All targets of that part of the data, where they are known without looking at images.

        Returns
        -------
        tuple of str
            Lines that say how outputs and targets are taken where that is not plain.

        Raises
        ------
        MintError
            They do not fit; the shapes of both are said.
        """
        return ()

    def forward(self, model: nn.Module, inputs: Inputs, targets: Any) -> Any:
        """Run the network in training mode; what it returns is given to :meth:`loss`."""
        return run(model, inputs)

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """A scalar with a gradient: how far outputs are from targets, the mean over the samples."""
        raise NotImplementedError

    def divergence(self, outputs: Any, taught: Any) -> Tensor:
        """A scalar with a gradient: how far outputs are from those of a teacher, for distillation."""
        return output_distance(outputs, taught)

    def meter(self) -> Meter:
        """A meter that has seen nothing yet."""
        raise NotImplementedError
