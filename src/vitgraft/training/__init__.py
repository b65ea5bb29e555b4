"""How models are trained from recipes: the command line, optimisation, and what keeps a run unbroken.

Needs the `train` extra; `import vitgraft` never comes here.
"""
