"""What draws figures: matplotlib for print, plotly for the screen, none for tests.

Only files below this package import a drawing library.
"""
