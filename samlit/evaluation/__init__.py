"""Tasks with their published metrics: `samlit evaluate`, and what the metrics compute."""
