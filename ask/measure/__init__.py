"""Measurements beside the attack cells: AdvKnn's blocks, failures, timing, and an example in pictures."""
