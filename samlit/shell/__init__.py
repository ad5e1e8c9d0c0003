"""The command line: words to options, complaints, completion and bars."""
