"""The tables of jobs: the metric after each stage."""

from __future__ import annotations

from typing import Any

STAGES = {
    "original": "original",
    "pruned": "nothing done",
    "repaired": "repaired",
    "healed": "healed without labels",
    "finetuned": "fine-tuned",
}


def job_table(rows: list[dict[str, Any]]) -> list[str]:
    """One line per ratio and criterion; stages that no row has are left out."""
    stages = [stage for stage in STAGES if any(row["quality"][stage] is not None for row in rows)]
    head = ["removed", "MACs", "criterion", *(STAGES[stage] for stage in stages)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in sorted(rows, key=lambda row: (row["ratio"], row["criterion"] != "gaussian, backward")):
        macs = 1 - row["macs"][1] / row["macs"][0]
        values = [row["quality"][stage] for stage in stages]
        shown = ["" if value is None else f"{100 * value:.2f}" for value in values]
        asked = row.get("calibration_images")  # where it was not left to the default
        criterion = f"{row['criterion']}, {asked:,} images" if asked else row["criterion"]
        cells = [f"{row['removed']:.1%}", f"{macs:.1%}", criterion, *shown]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
