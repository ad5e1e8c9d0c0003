"""`samlit segment`: masks of pictures, from the shell."""
