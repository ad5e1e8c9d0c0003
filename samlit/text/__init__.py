"""CLIP beside the model: phrases, cut-outs, and their embeddings."""
