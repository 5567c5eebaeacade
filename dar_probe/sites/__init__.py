"""Where any module reads and writes its residual stream."""
