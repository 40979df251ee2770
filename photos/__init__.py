"""Faces in photographs and videos, and the files that these come in."""
