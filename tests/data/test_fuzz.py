"""Damage never ends the process, nor makes frames that are sought others than those decoded from the beginning."""

import os
import subprocess
import sys
from pathlib import Path

from tests.data.test_seeking import scene, x264

REPOSITORY = Path(__file__).parents[2]
FILES = 300


def test_damaged_videos_in_a_process_of_their_own(tmp_path):
    sources = [
        scene(tmp_path / "a.avi", "mpeg4"),
        scene(tmp_path / "a.mp4"),
        scene(tmp_path / "a.mkv"),
        x264(tmp_path / "open.mp4", "open-gop=1:bframes=3"),
        scene(tmp_path / "ten.mp4", pix_fmt="yuv420p10le"),
        scene(tmp_path / "intra.avi", "mjpeg", pix_fmt="yuvj420p", options={}),
    ]
    folder = tmp_path / "damaged"
    folder.mkdir()
    command = [sys.executable, "-m", "tests.data.fuzz", str(folder), "0", str(FILES), *map(str, sources)]
    run = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120
    )  # fmt: skip
    assert run.returncode == 0, f"{os.listdir(folder)}: {run.stderr[-1000:]}"
    counts = [int(part.split()[0]) for part in run.stdout.split(", ")]
    assert sum(counts) == FILES and min(counts) >= FILES // 10, run.stdout
