"""A run: its rounds and their stages, recovery, the run folder and the curves."""
