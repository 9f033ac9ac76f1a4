"""What goes into the export where the whole network cannot: a module of it, or a detector's raw heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from mint_compress.errors import MintError, foreign
from mint_compress.importing import import_named
from mint_compress.nn.counting import parameters
from mint_compress.nn.detectors import RawHeads, is_detector


@dataclass(frozen=True)
class ExportPart:
    """What of a network is exported, compared with PyTorch, and timed.

    Attributes
    ----------
    name
        For a person; None: all of it.
    asked
        The name of a module, or ``package.module:callable``; None: a detector's raw heads.
    """

    name: str | None = None
    asked: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left out."""
        return self.name is None

    def of(self, network: nn.Module) -> nn.Module:
        """That part of ``network``, which is in eval mode.

        Raises
        ------
        MintError
            A part of the user's making is no module with layers of the network.
        """
        if self.is_whole:
            return network
        made = self._taken(network)
        own = {id(p) for p in network.parameters()}
        if not isinstance(made, nn.Module) or not any(id(p) in own for p in made.parameters()):
            raise MintError(
                f"--export-part {self.name} gave a {type(made).__name__}. It must give a module that has "
                "layers of the network itself, no copies of them."
            )
        return made.eval()

    def _taken(self, network: nn.Module) -> Any:
        if self.asked is None:
            return RawHeads(network)
        if ":" not in self.asked:
            return _Inner(network, self.asked)
        take = import_named(self.asked, "the part")
        with foreign(f"Taking the part {self.name}"):
            return take(network)

    def said(self, network: nn.Module) -> tuple[str, ...]:
        """A line on what is in the file and what is not."""
        if self.is_whole:
            return ()
        inside, all_of_it = parameters(self.of(network)), parameters(network)
        return (
            f"the export holds {self.name}, {inside:,} of {all_of_it:,} parameters; parity and latency are "
            "of that part, and the .safetensors holds everything",
        )


WHOLE = ExportPart()


def find_part(network: nn.Module, asked: str | None) -> ExportPart:
    """What of ``network`` is to be exported.

    Parameters
    ----------
    network
        What torchvision's detectors do to boxes cannot be exported: of them it is what their heads say.
    asked
        The name of a module that takes what the network takes, or ``package.module:callable``, which is given
        the network and returns the part.

    Raises
    ------
    MintError
        There is no such module or callable.
    """
    if asked is None:
        return ExportPart("the raw heads") if is_detector(network) else WHOLE
    if ":" in asked:
        import_named(asked, "the part")
        return ExportPart(asked, asked)
    names = [name for name, _ in network.named_modules() if name]
    if asked not in names:
        raise MintError(
            f"--export-part {asked!r} names no module. The network has, for example, {', '.join(names[:3])}; "
            "package.module:callable makes a part of your own."
        )
    return ExportPart(asked, asked)


class _Inner(nn.Module):
    """A module of a network, under the name that it has there."""

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        *above, leaf = name.split(".")
        holder: nn.Module = self
        for step in above:
            holder.add_module(step, nn.Module())
            holder = holder.get_submodule(step)
        holder.add_module(leaf, network.get_submodule(name))
        self._path = name

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.get_submodule(self._path)(*args, **kwargs)
