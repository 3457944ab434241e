"""Plans a run without the TPU slice: compiles every phase ahead of time for memory, bytes, flops and cost."""
