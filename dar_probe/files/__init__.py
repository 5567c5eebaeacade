"""Bytes on disk: what kind a file is, how it is read unexecuted, how it is written whole."""
