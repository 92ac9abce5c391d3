"""A race of memo against other caching libraries: `python -m benchmarks` from the repository root."""
