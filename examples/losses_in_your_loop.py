"""These losses in a training loop of your own: L_VS and L_VD (DCLR Eq. 6-7) of random clips.

python examples/losses_in_your_loop.py
"""

import torch

from dclr.kernels import decouple, info_nce
from dclr.models import build_encoder

encoder = build_encoder("r2plus1d_tiny")
optimizer = torch.optim.SGD(encoder.parameters(), lr=0.01, momentum=0.9)
videos = torch.randint(256, (8, 3, 10, 32, 32), dtype=torch.uint8)
for step in range(3):
    # Two views, of frames 0 to 8 and 1 to 9: of each a clip, its static clip and its frame difference.
    clips = torch.cat([videos[:, :, :9], videos[:, :, 1:]])
    v, s, d = (encoder(x).mean((2, 3, 4)) for x in decouple(clips, torch.randint(8, (16,))))
    own, other_view = torch.arange(16), torch.arange(16).roll(8)
    loss = sum(info_nce(v, key, positive=other_view, exclude=own, temperature=0.1) for key in (s, d))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step}: loss {loss:.3f}")
