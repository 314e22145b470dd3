"""Training crops of fixed shape, as shares of the frame: for `data.scale` and `data.ratio`."""

# DualVar squeezes frames to 128 x 171 (width x height) before it cuts 112 x 112. For frames of 4:3 that is a crop of
# 87.5% of the width and 65.5% of the height.
_WIDTH, _HEIGHT = 112 / 128, 112 / 171
SQUEEZED_SCALE = (_WIDTH * _HEIGHT, _WIDTH * _HEIGHT)
SQUEEZED_RATIO = (4 / 3 * _WIDTH / _HEIGHT, 4 / 3 * _WIDTH / _HEIGHT)
