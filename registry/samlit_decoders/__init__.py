"""Built-in decoders: one file a plug-in."""
