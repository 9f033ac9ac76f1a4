"""Gaussian copula: every column by its ranks, as if its values had been normal."""

from __future__ import annotations

import torch
from torch import Tensor

from mint_compress.errors import MintError
from mint_compress.estimators.samples import check_finite


def normal_scores(what: str, values: Tensor) -> Tensor:
    """Replace every value by the normal quantile of its rank in its column.

    Mutual information does not change when a column is mapped monotonically, so columns may be made
    normal one by one. Where they are then not jointly Gaussian, the closed form on the scores is a
    lower bound (R. A. A. Ince et al., "A statistical framework for neuroimaging data analysis based
    on mutual information estimated via a Gaussian copula", Human Brain Mapping 38(3), 2017).

    Parameters
    ----------
    what
        Name of the values in an error.
    values
        ``(n, C)``.

    Returns
    -------
    Tensor
        ``(n, C)`` float64: the quantile of rank / (n + 1), ranks from 1 on. Equal values share
        their average rank, so a constant column stays constant.

    Raises
    ------
    MintError
        NaN or infinite values, or not two dimensions.
    """
    if values.ndim != 2:
        raise MintError(f"{what} must be (rows, columns), not {tuple(values.shape)}.")
    check_finite(what, values)
    if not len(values):
        return values.double()
    ordered, place = values.T.contiguous().sort(1)
    position = torch.arange(len(values), device=values.device)
    new = torch.ones_like(ordered, dtype=torch.bool)  # a run of equal values starts here
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    last = torch.ones_like(new)
    last[:, :-1] = new[:, 1:]
    first = torch.where(new, position, 0).cummax(1).values
    final = torch.where(last, position, len(values)).flip(1).cummin(1).values.flip(1)
    rank = 1 + (first + final).double() / 2
    scores = torch.special.ndtri(rank / (len(values) + 1))
    return torch.empty_like(scores).scatter_(1, place, scores).T
