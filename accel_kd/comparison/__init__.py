"""Runs side by side: what differs in their settings, and what of their results a test set can tell apart."""
