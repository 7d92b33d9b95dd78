"""Runs: what a training script does, captured while it does it."""
