"""Which tests run plain and which under the interpreter; all others run both ways."""

import os

# The compiler needs real `triton.jit` functions, the traffic counts need interpreted ones.
INTERPRET = os.environ.get("TRITON_INTERPRET", "0") == "1"
collect_ignore_glob = ["test_*aot*.py"] if INTERPRET else ["test_traffic.py", "test_*floor.py"]
