"""Pretrain on a folder of videos in class folders, then see how good the features are.

python examples/pretrain_folder.py videos runs/mine
"""

import sys

import dclr
from dclr.commands.evaluate import KnnConfig, knn
from dclr.presets import PRESETS

config = PRESETS["small"]()
config.data.root, config.output = sys.argv[1:3]
run = dclr.pretrain(config)
record = knn(KnnConfig(str(run)))
print(f"{record['top1']:.1f}% of the test videos are classified rightly by their neighbours")
