"""Shards in SA-1B's own layout: written, indexed, read from anywhere, checked (SAM_SPEC 4)."""
