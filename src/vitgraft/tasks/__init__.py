"""How each task is trained: LightningModules, their optimizer and schedule, initial weights.

Needs the `train` extra, and for detection from its first evaluation on the `detection` extra; `import vitgraft` never
comes here.
"""
