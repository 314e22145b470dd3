"""The two-video example whose losses are worked out by hand: rows are i1, i2, j1, j2, temperature 0.5."""

import torch

V = torch.tensor([[1, 0], [0, 1], [3, 4], [-3, 4]], dtype=torch.float64)
S = torch.tensor([[2, 1], [1, -1], [1, 1], [0, 1]], dtype=torch.float64)
D = torch.tensor([[1, 2], [-1, 1], [4, 3], [-1, 0]], dtype=torch.float64)
TAU = 0.5
