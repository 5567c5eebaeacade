"""What each figure shows, as data. A new figure is one file here and a name in ``registry``."""
