"""Benchmarks of infotorch against the libraries it would replace; see README.md for the rules."""
