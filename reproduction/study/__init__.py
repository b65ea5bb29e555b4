"""The study of the paper's claims: PROTOCOL.md says how it is decided, grid.yaml what is run."""
