"""Groups that fail by themselves: tried with others whose sizes go with theirs, in pairs, and as heads."""

from __future__ import annotations

from collections.abc import Sequence

from mint_compress.errors import ForeignError
from mint_compress.graph.groups import UNREAD, ChannelGroup
from mint_compress.graph.label_groups import label_groups
from mint_compress.graph.label_tracing import IN_NO_DIMENSION, Recorder, Recording
from mint_compress.graph.labels import Reading
from mint_compress.graph.permutation_check import WRONG_MAP
from mint_compress.graph.reference import Reference
from mint_compress.graph.removal_check import UNREMOVABLE
from mint_compress.nn.contexts import training_flags


def tied(reference: Reference, groups: Sequence[ChannelGroup], reading: Reading) -> list[ChannelGroup]:
    """Other groups in the place of those that cannot lose channels by themselves, each of some of these.

    ``x.view(n, c, h, w)`` with the ``c`` of another tensor fails as soon as one of the two gets narrower,
    and not where both lose the same share.

    Parameters
    ----------
    reference
        The network; it is left as it was.
    groups
        From labels, proved apart.
    reading
        What is taken to go together.

    Returns
    -------
    list of ChannelGroup
        None of them is proved.
    """
    failed = {g.name for g in groups if not g.prunable and _is_for(g, reading)}
    recording = _recorded(reference, reading) if failed else None
    if recording is None:
        return []
    found = []
    for group in label_groups(recording):
        own = {g.name for g in groups if set(g.producers) & set(group.producers)}
        joined = len(own) > 1 and group.parts is not None
        different = joined or reading in (Reading.ROWS, Reading.HEADS)
        if different and own & failed and group.prunable:
            found.append(group.checked())
    return [g for g in found if g.prunable]


def _is_for(group: ChannelGroup, reading: Reading) -> bool:
    """Whether a group may be left alone for what this reading takes into account."""
    kinds = [UNREMOVABLE.partition("{")[0]]
    if reading is Reading.HEADS:
        kinds += [WRONG_MAP, IN_NO_DIMENSION, UNREAD]
    return (group.reason or "").startswith(tuple(kinds))


def _recorded(reference: Reference, reading: Reading) -> Recording | None:
    """What passes show in which sizes of tensors are followed; None where they show nothing new."""
    recorder = Recorder(reference.model, reading)
    try:
        recorder.run(reference.inputs)
        if reference.in_training:
            with training_flags(reference.model):
                recorder.run(reference.inputs)
    except ForeignError:
        return None
    recording = recorder.recording()
    if reading is Reading.SIZES:
        new = any(recording.written.ties_by_shape)
    elif reading is Reading.NUMBERS:
        new = any(recording.written.ties_by_number)
    else:
        new = recorder.labels.together
    return recording if new else None
