"""A training run on disk: its folder, its checkpoints, the page about it."""
