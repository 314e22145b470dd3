"""Which videos are most like one?

python examples/embed_and_search.py runs/mine query.mp4 video.mp4 ...
"""

import sys

from torch.nn.functional import normalize

import dclr

run, query, *others = sys.argv[1:]
encoder = dclr.load_encoder(run)
vectors = {path: normalize(dclr.embed(path, encoder).mean(0), dim=0) for path in (query, *others)}
for cosine, path in sorted(((vectors[query] @ vectors[path]).item(), path) for path in others)[::-1]:
    print(f"{cosine:.3f} {path}")
