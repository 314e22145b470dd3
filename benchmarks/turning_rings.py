"""Does a search across videos help where clips of a video differ in their motion? DCLR Sec. 3.2, on rings, in minutes.

    python -m benchmarks.turning_rings --output results.json

Rings are the tests' generated videos of one row of pixels (`tests/methods/rings.py`). Pretrained on videos whose motion
turns half way, or that go straight, an encoder is asked for motion and scene of straight ones. L_VS + L_VD, without a
search and with one by differences, K = 5, of which Eq. 10 replaces L_VD or is half of it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import torch

from dclr.methods.dclr import AlignmentConfig, DCLRConfig, LossWeights, RefineConfig
from dclr.methods.search import SearchConfig
from dclr.training.metrics import environment
from tests.methods.rings import figures, rings, train

VIDEOS, TEST_VIDEOS, BATCH = 1024, 200, 32
OBJECTIVES = {
    "no search": SearchConfig(on=()),
    "Eq. 10": SearchConfig(keep_own=False),
    "half Eq. 10": SearchConfig(keep_own=True),
}


def pretrained_figures(objective: str, turning: bool, seed: int, steps: int) -> dict:
    """Figures of one run, in percent; a search has its queue of a quarter of the videos from 3/8 of the steps on."""
    start = max(1, steps * 3 // 8 * BATCH // VIDEOS)  # an epoch
    search = replace(OBJECTIVES[objective], queue=VIDEOS // 4, start=start, refresh=start)
    config = DCLRConfig(
        losses=LossWeights(sd=0), search=search, alignment=AlignmentConfig(0), refine=RefineConfig(False, False),
        temperature=0.1, dim=64, hidden=96, center=True,
    )  # fmt: skip
    method, _ = train(config, rings(VIDEOS, seed=seed, turning=turning), steps=steps, seed=seed, batch=BATCH)
    found = figures(method.encoder, rings(VIDEOS, seed=1000 + seed), rings(TEST_VIDEOS, seed=2000 + seed))
    return {"objective": objective, "turning": turning, "seed": seed, **found}


def table(runs: list[dict]) -> str:
    lines = ["| videos | objective | motion R@1 | scene R@1 |", "| --- | --- | --- | --- |"]
    for turning in (True, False):
        for objective in OBJECTIVES:
            mine = [one for one in runs if (one["objective"], one["turning"]) == (objective, turning)]
            if len(mine) > 1:
                cells = [
                    f"{mean(x):.1f} ± {stdev(x):.1f}"
                    for x in ([one[key] for one in mine] for key in ("motion", "scene"))
                ]
                lines.append(f"| {'turning' if turning else 'straight'} | {objective} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="results.json")
    parser.add_argument("--steps", type=int, default=1024)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs: list[dict] = []
    for turning in (True, False):
        for seed in options.seeds:
            for objective in OBJECTIVES:
                runs.append(pretrained_figures(objective, turning, seed, options.steps))
                print(runs[-1], flush=True)
                results = {"environment": environment(torch.device("cpu")), "steps": options.steps, "runs": runs}
                options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(runs))


if __name__ == "__main__":
    main()
