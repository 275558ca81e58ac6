"""What a line is told that cannot be carried out."""

from __future__ import annotations


class Complaint(Exception):
    """The line itself is wrong: the answer ends with where to find help."""


class Failure(Exception):
    """The line is understood, and cannot be carried out; the answer is the text as it is."""
