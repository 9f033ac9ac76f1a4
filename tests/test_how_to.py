"""The commands of docs/how-to/ run as printed, one after the other, in a copy of examples/."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent
COMMAND = re.compile(r"^```bash\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
PAGES = {
    path.stem: COMMAND.findall(path.read_text(encoding="utf-8").replace(" \\\n   ", ""))
    for path in sorted((ROOT / "docs" / "how-to").glob("*.md"))
    if path.stem != "index"
}
WORDS = {
    "mint-compress": [sys.executable, "-m", "mint_compress"],
    "torchrun": [sys.executable, "-m", "torch.distributed.run"],
    "python": [sys.executable],
}
"""What stands for the scripts, which need not be installed beside the interpreter that runs the tests."""


def test_every_page_has_commands_and_names_its_results_after_itself() -> None:
    assert len(PAGES) == 8
    written = [re.search(r"-o (\S+)", line) for lines in PAGES.values() for line in lines]
    names = [found[1] for found in written if found]
    assert len(names) == len(set(names)) >= 8  # all pages can be gone through in one folder
    assert all(line.split()[0] in WORDS for lines in PAGES.values() for line in lines)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """examples/, with digits as photographs of three classes and a ResNet-18 that has learnt nothing."""
    from sklearn.datasets import load_digits
    from torchvision.models import resnet18

    place = tmp_path_factory.mktemp("how_to") / "examples"
    shutil.copytree(ROOT / "examples", place)
    digits = load_digits(n_class=3)
    for i, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        part = {0: "test", 1: "val"}.get(i % 10, "train")
        file = place / "photos" / part / f"class{label}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15.9).astype("uint8")).convert("RGB").resize((64, 64)).save(file)
    torch.manual_seed(0)
    torch.save(resnet18(num_classes=3).state_dict(), place / "resnet18.pt")
    return place


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_run(page: str, folder: Path) -> None:
    for line in PAGES[page]:
        command, _, target = line.partition(" > ")
        first, *rest = shlex.split(command)
        done = subprocess.run([*WORDS[first], *rest], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, (line, done.stderr[-2000:])
        if target:
            (folder / target).write_text(done.stdout)
        for name in re.findall(r"-o (\S+)", command):
            assert (folder / name).stat().st_size > 0
