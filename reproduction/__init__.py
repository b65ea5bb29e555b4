"""The paper's tables, figures and studies: reads results/, writes docs/; from a checkout, not in the wheel."""
