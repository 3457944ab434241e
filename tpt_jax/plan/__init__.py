"""Planning a run on an absent TPU slice: every phase compiled ahead of time, its memory, bytes, flops and cost."""
