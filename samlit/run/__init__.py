"""The life of a run: its processes, checkpoints, progress, speed, and what it reports."""
