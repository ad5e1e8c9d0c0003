"""Built-in sources: one file a plug-in."""
