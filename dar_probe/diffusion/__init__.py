"""Noise levels, paths, predictions, data, samplers, generation and quality."""
