"""How models are trained from recipes: the command line, optimization, and exact resume.

Needs the `train` extra; `import vitgraft` never comes here.
"""
