"""The only files that import a drawing library."""
