"""Built-in prompts: one file a plug-in."""
