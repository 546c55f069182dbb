"""Typed slices of the configuration: what one job reads, and nothing else.

Descriptions are attribute docstrings, so editing one changes documentation but no code fingerprint.
"""
