"""Models in diffusers' layout: a folder, its class, its inputs, its clock.

diffusers is imported only inside functions, and only when such a model is asked for.
"""
