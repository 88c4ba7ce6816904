"""Edgekiln: quantize a Qwen checkpoint, export it for devices, and prove what was shipped."""

__version__ = "0.1.0"
