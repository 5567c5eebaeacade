"""What several commands share: options, the terminal, progress, errors."""
