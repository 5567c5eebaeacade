"""How figures look: colours, words and their room, links between axes."""
