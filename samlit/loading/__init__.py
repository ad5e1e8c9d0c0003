"""From sources to packed batches: which sample comes when, what becomes of its image and masks, what is left out."""
