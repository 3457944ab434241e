"""Models on disk: folders to load, checkpoints written in the background, checksums, saves of a training."""
