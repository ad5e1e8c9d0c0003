"""`samlit plan`: what a recipe costs, before anything is trained."""
