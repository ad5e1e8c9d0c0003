"""Built-in tasks: one file a plug-in."""
