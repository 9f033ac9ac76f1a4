"""Following a network's channels: through the pass of evaluation and, where that shows more, of training."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from mint_compress.errors import ForeignError, MintError, OwnFault, first_line, is_strict, our_own
from mint_compress.graph.engines import Refused
from mint_compress.graph.label_tracing import Recorder, Recording
from mint_compress.graph.reference import TOLERANCE, Reference, change, reference_run
from mint_compress.nn.contexts import training_flags
from mint_compress.nn.layers import WEIGHTED

log = logging.getLogger(__name__)


def followed(network: nn.Module, inputs: tuple[Any, ...]) -> tuple[Reference, Recording | Refused]:
    """What the network gives, and what following its channels has shown.

    Parameters
    ----------
    network, inputs
        From :func:`mint_compress.graph.reference.reference_copy`.

    Returns
    -------
    reference, recording
        The recording is of the passes of the reference; or the reason why its channels could not be followed.

    Raises
    ------
    MintError
        The network cannot be run on these inputs.
    """
    try:
        reference = reference_run(network, inputs)
    except ForeignError as error:
        raise MintError(
            f"The network could not be traced: {first_line(error)}. "
            "Check --input-shape, or run its forward on such an input."
        ) from error
    recorder = Recorder(network)
    try:
        recorder.run(reference.inputs)
        unseen = {n for n, m in network.named_modules() if isinstance(m, WEIGHTED)} - recorder.reached
        if unseen:
            reference = _with_training(reference, inputs, recorder)
        with our_own():
            return reference, recorder.recording()
    except ForeignError as error:
        return reference, _not_followed(str(error))
    except OwnFault as fault:
        if is_strict():
            raise fault.__cause__ or fault from None
        return reference, _not_followed(f"our own fault, {fault}")


def _not_followed(why: str) -> Refused:
    log.warning("the channels could not be followed (%s); Torch-Pruning's graph alone is used", why)
    log.debug("where that was", exc_info=True)
    return Refused(why)


def _with_training(reference: Reference, inputs: tuple[Any, ...], recorder: Recorder) -> Reference:
    """Record the network's way in training, too, and give its reference when it reaches more layers."""
    network, before = reference.model, recorder.reached
    try:
        both = reference_run(network, inputs, in_training=True)
        with training_flags(network):
            recorder.run(both.inputs)
    except ForeignError as error:  # a way that the network may never have taken
        why = first_line(error)
        log.info("the network cannot be run as in training (%s); layers that only training uses stay", why)
        return reference
    training_only = recorder.reached - before
    if not training_only:
        return reference
    recorder.only_in_training(training_only)
    if change(both.outputs, both.run()) > TOLERANCE:
        recorder.hold(training_only, "only training uses a layer, and not twice in the same way")
        return reference
    return both
