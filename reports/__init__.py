"""What people look at: paper figures, interactive figures and the one-file HTML report."""
