"""samlit: the open training framework for promptable segmentation."""

__version__ = "0.1.0.dev0"
