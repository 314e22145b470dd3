"""Pretrain on a folder of videos in class folders, then see how good the features are.

python examples/pretrain_folder.py videos runs/mine
"""

import sys

import dclr
from dclr.commands.evaluate import KnnConfig, knn
from dclr.presets import PRESETS


def main(root: str, output: str) -> None:
    config = PRESETS["small"]()
    config.data.root, config.output = root, output
    run = dclr.pretrain(config)
    record = knn(KnnConfig(str(run)))
    print(f"{record['top1']:.1f}% of the test videos are classified rightly by their neighbours")


if __name__ == "__main__":  # the processes that decode import this file again
    main(*sys.argv[1:])
