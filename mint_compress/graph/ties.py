"""Groups that fail by themselves: tried with those whose widths theirs is taken from, and in pairs."""

from __future__ import annotations

from collections.abc import Sequence

from mint_compress.errors import ForeignError
from mint_compress.graph.groups import ChannelGroup
from mint_compress.graph.label_groups import label_groups
from mint_compress.graph.label_tracing import Recorder, Recording
from mint_compress.graph.reference import Reference
from mint_compress.graph.removal_check import UNREMOVABLE
from mint_compress.nn.contexts import training_flags


def tied(reference: Reference, groups: Sequence[ChannelGroup], *, pairing: bool) -> list[ChannelGroup]:
    """Other groups in the place of those that cannot lose channels by themselves, each of some of these.

    ``x.view(n, c, h, w)`` with the ``c`` of another tensor fails as soon as one of the two gets narrower,
    and not where both lose the same share.

    Parameters
    ----------
    reference
        The network; it is left as it was.
    groups
        From labels, proved apart.
    pairing
        Whether channels that are laid out in rows, to be shuffled, go together at the same place of each.

    Returns
    -------
    list of ChannelGroup
        None of them is proved.
    """
    failed = {g.name for g in groups if not g.prunable and _is_unremovable(g)}
    recording = _recorded(reference, pairing=pairing) if failed else None
    if recording is None:
        return []
    usable = failed | {g.name for g in groups if g.prunable}
    found = []
    for group in label_groups(recording):
        own = {g.name for g in groups if set(g.producers) & set(group.producers)}
        different = pairing or (len(own) > 1 and group.parts is not None)
        if different and own & failed and own <= usable and group.prunable:
            found.append(group.checked())
    return [g for g in found if g.prunable]


def _is_unremovable(group: ChannelGroup) -> bool:
    return (group.reason or "").startswith(UNREMOVABLE.partition("{")[0])


def _recorded(reference: Reference, *, pairing: bool) -> Recording | None:
    """What passes show in which sizes of tensors are followed; None where they show nothing new."""
    recorder = Recorder(reference.model, shapes=True, pairing=pairing)
    try:
        recorder.run(reference.inputs)
        if reference.in_training:
            with training_flags(reference.model):
                recorder.run(reference.inputs)
    except ForeignError:
        return None
    recording = recorder.recording()
    new = recorder.labels.paired if pairing else any(recording.written.ties)
    return recording if new else None
