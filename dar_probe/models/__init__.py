"""One file a family: builds the model and names its sites. ``sit.py`` is the bundled backbone."""
