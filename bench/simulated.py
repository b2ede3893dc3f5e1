"""FPS on 1 to 4 GPUs by simulation, from costs that were fitted to published numbers or modelled:
no device is behind any of them. Rows for the performance page.

    python -m bench.simulated
"""

from __future__ import annotations

import json
from pathlib import Path

from bench.published_costs import files
from rt.placement import place
from rt.scheduler import Terms
from rt.simulate import Machine, Stream, saturated_fps, simulate

FITTED = "costs fitted to arXiv 2511.07399, the VAE in one piece at either end"
MODELLED = "costs modelled from work and peak rates, the VAE cut into units"
MODELS = {
    "h100-wan-1.3b-480p-published": FITTED,
    "h100-wan-14b-480p-published": FITTED,
    "h100-wan-1.3b-480p-modelled": MODELLED,
}
RESULTS = Path(__file__).parent / "results" / "simulated"


def rows() -> list[dict[str, object]]:
    """One row for each model, number of steps and number of GPUs."""
    found: list[dict[str, object]] = []
    costs = files()
    for model, title in MODELS.items():
        for steps in (1, 2, 4):
            for gpus in range(1, 5):
                devices = [costs[model]] * gpus
                machine = Machine.of(devices, place(devices, steps), steps)
                run = simulate(machine, [Stream(1e6, 1201, Terms(steps))])
                fps = round(saturated_fps(run, machine.frames_per_chunk), 2)
                name = f"{model}: {steps} steps, {gpus} GPUs"
                found.append(
                    {"benchmark": title, "name": name, "value": fps, "unit": "frames/s",
                     "runs": 1, "limit": None, "note": "simulated", "machine": {"GPU": "none"}}
                )  # fmt: skip
    return found


def main() -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "scaling.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    print(f"written to {path}")


if __name__ == "__main__":
    main()
