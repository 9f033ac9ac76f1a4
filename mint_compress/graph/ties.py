"""Groups that fail apart because a forward pass takes the width of one from another: tried together."""

from __future__ import annotations

from collections.abc import Sequence

from mint_compress.errors import ForeignError
from mint_compress.graph.groups import ChannelGroup
from mint_compress.graph.label_groups import label_groups
from mint_compress.graph.label_tracing import Recorder, Recording
from mint_compress.graph.reference import Reference
from mint_compress.graph.removal_check import UNREMOVABLE
from mint_compress.nn.contexts import training_flags


def tied(reference: Reference, groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    """Groups in parts, each of several of these, of which some cannot lose channels by themselves.

    ``x.view(n, c, h, w)`` with the ``c`` of another tensor fails as soon as one of the two gets narrower,
    and not where both lose the same share.

    Parameters
    ----------
    reference
        The network; it is left as it was.
    groups
        From labels, proved apart.

    Returns
    -------
    list of ChannelGroup
        None of them is proved.
    """
    failed = {g.name for g in groups if not g.prunable and _is_unremovable(g)}
    recording = _recorded(reference) if failed else None
    if recording is None:
        return []
    usable = failed | {g.name for g in groups if g.prunable}
    found = []
    for group in label_groups(recording):
        own = {g.name for g in groups if set(g.producers) & set(group.producers)}
        if len(own) > 1 and own & failed and own <= usable and group.prunable and group.parts is not None:
            found.append(group.checked())
    return [g for g in found if g.prunable]


def _is_unremovable(group: ChannelGroup) -> bool:
    return (group.reason or "").startswith(UNREMOVABLE.partition("{")[0])


def _recorded(reference: Reference) -> Recording | None:
    """What passes show in which sizes of tensors are followed; None where the network does not take them."""
    recorder = Recorder(reference.model, shapes=True)
    try:
        recorder.run(reference.inputs)
        if reference.in_training:
            with training_flags(reference.model):
                recorder.run(reference.inputs)
    except ForeignError:
        return None
    return recorder.recording()
