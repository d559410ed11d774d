"""The process that compiles: rebuilds a graph that the daemon sends, compiles it, answers with an artifact.

`python -u -m piecewised_executor` speaks docs/executor-protocol.md on stdin and stdout. Standard library and torch
only.
"""
