"""What a maintainer does with the repository and its runs; no part of the package."""
