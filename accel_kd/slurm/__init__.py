"""Batch scripts for SLURM."""
