"""Trained generators as files."""
