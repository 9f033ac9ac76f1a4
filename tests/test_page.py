"""The page of a report: what it says, and that it needs nothing but itself."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_reporting import FULL

from mint_compress import Report
from mint_compress.cli.app import main
from mint_compress.reporting.html import report_page
from mint_compress.reporting.records import ExportFigures, Latency, LayerChange, SideBySide

REPORT = Report.from_dict(FULL)
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Balanced(HTMLParser):
    """Fails where a tag is closed that is not the open one."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> str:
    """The text of a page whose tags fit."""
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    return " ".join(" ".join(parser.text).split())


def test_the_headline_and_every_section_say_what_the_report_says() -> None:
    one = ExportFigures(4_000_000, 0.98, 0.99, Latency(2.0, 2.0, None, 3), 1.0)
    report = replace(REPORT, int8=SideBySide(one, one, one, replace(one, bytes=1_000_000, speedup=3.5)))
    text = read(report_page(report))
    assert "75.1 % of the parameters removed: 10,000,000 to 2,488,000" in text
    assert "4.00x as fast: 12.5 to 3.12 ms on CPUExecutionProvider" in text
    assert "98.52 % accuracy, -0.08 points against the original" in text
    assert "int8 pruned 1.00 MB 98.00 % 99.0 % 2.00 ms 3.50x" in text
    assert "class 1 94.0 to 60.0 % of 1,000" in text and "class 2" not in text
    assert "its channel map failed the permutation check (2 groups): down1, down2" in text
    assert "75.1 % removed 3.10 ms, 4.03x as fast, chosen" in text
    assert "Sample 3: class 1 became 2" in text
    assert "calibrate 12.5 s" in text and "1,024 calibration images." in text
    assert report.command is not None and report.command in text


def test_bars_are_as_long_as_the_figures() -> None:
    page = report_page(REPORT)
    layers = page[page.index("Parameters of each layer") :]
    widths = re.findall(r'class="(before|after)" style="width:([\d.]+)%', layers)
    assert widths[:4] == [("before", "100.00"), ("after", "25.00"), ("before", "6.25"), ("after", "6.25")]
    assert ("after", "100.00") in widths[4:] and ("after", "26.00") in widths[4:]  # 12.5 and 3.25 seconds


def test_it_asks_no_server_and_names_are_no_markup() -> None:
    evil = LayerChange("<script>alert(1)</script>", 4, 2)
    page = report_page(replace(REPORT, layers=(evil,), model="a/<b>.pt", notes=("</main><script>",)))
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page and "&lt;b&gt;.pt, compressed" in page
    assert not re.search(r"(?i)(https?:)?//[a-z]|@import|url\(|src=", page)
    read(page)


def test_a_report_of_nothing_is_a_page_too() -> None:
    assert "A network, compressed" in read(report_page(Report()))


def test_the_command_makes_it_again(tmp_path: Path) -> None:
    figures = tmp_path / "small.json"
    figures.write_text(REPORT.to_json())
    assert CliRunner().invoke(main, ["report", str(figures)]).exit_code == 0
    assert (tmp_path / "small.html").read_text(encoding="utf-8") == report_page(REPORT)
    again = CliRunner().invoke(main, ["report", str(figures)])
    assert again.exit_code == 2 and "small.html' exists already. Replace it with --force" in again.stderr
    assert CliRunner().invoke(main, ["report", str(figures), "--force"]).exit_code == 0
    figures.write_text(json.dumps({"format": 99}))
    bad = CliRunner().invoke(main, ["report", str(figures), "-o", str(tmp_path / "other.html")])
    assert bad.exit_code == 2 and "has format 99" in bad.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small.html", "small.json"]


def test_a_browser_shows_it_without_an_error(tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium here")
    (tmp_path / "page.html").write_text(report_page(REPORT), encoding="utf-8")
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--dump-dom",
    ]
    shown = subprocess.run(
        [*command, f"--user-data-dir={tmp_path}/user", f"file://{tmp_path}/page.html"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert "75.1 %" in shown.stdout and "CONSOLE" not in shown.stderr
