"""HTML pages and their words, tables and definitions."""
