"""What a measurement is and what it means, without torch."""
