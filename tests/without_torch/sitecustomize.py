"""Python reads this file when it starts, where this folder is in PYTHONPATH: the process has no PyTorch, as a user's.

Only tests use it. Where it is installed transformers imports it, which takes seconds.
"""

import sys

sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
