"""A plain training loop for the networks of scenes; it goes on where it was interrupted."""

from __future__ import annotations

from pathlib import Path

import torch
from scenes import Scenes
from torch import nn

import mint_compress as mc

LR, WEIGHT_DECAY = 3e-3, 1e-2


def fit_(
    model: nn.Module, scenes: Scenes, task: mc.Task, *, epochs: int, state: Path, batch_size: int = 16
) -> None:
    """AdamW, one cycle of the learning rate, by the task's loss; ``state`` is kept after each epoch."""
    steps = max(1, len(scenes) // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=epochs * steps, pct_start=0.2)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    model.train().to(memory_format=torch.channels_last)
    first = 0
    if state.exists():
        found = torch.load(state, weights_only=True)
        first = found.pop("epoch") + 1
        for name, part in parts.items():
            part.load_state_dict(found[name])
    for epoch in range(first, epochs):
        order = torch.randperm(len(scenes), generator=torch.Generator().manual_seed(epoch))
        total = 0.0
        for rows in order[: steps * batch_size].view(steps, -1).tolist():
            images, targets = scenes.batch(rows)
            optimizer.zero_grad()
            loss = task.loss(model(images.to(memory_format=torch.channels_last)), targets)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        print(f"epoch {epoch + 1} of {epochs}: loss {total / steps:.4f}", flush=True)
        torch.save({"epoch": epoch, **{name: part.state_dict() for name, part in parts.items()}}, state)
    model.eval().to(memory_format=torch.contiguous_format)
    state.unlink(missing_ok=True)
