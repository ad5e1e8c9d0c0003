"""`samlit export`: weights for other people's code, and graphs for ONNX."""
