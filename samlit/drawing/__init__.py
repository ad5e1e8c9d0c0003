"""Masks, examples and numbers as pictures and plots."""
