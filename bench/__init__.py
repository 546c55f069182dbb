"""Benchmarks of ``ask`` against its peers and the hardware's floor: ``python -m ask bench``; see README.md here.

Nothing in ``ask`` imports this package but that command, and no step of the workflow depends on it.
"""
