"""Measures a subject: one forward and one backward give every variable."""
