"""Masks as runs: read, written, traced from logits, and clicked in."""
