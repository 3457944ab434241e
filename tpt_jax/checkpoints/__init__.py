"""Models on disk: folders to load, checkpoints written in the background, checksums, the state of a training."""
