"""Built-in encoders: one file a plug-in."""
