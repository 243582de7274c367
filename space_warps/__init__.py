"""Grow a compact image classifier, block by block, for your own catalogue of cutouts."""

__version__ = "0.1.0"
