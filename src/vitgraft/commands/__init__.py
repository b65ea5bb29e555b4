"""The sub-commands of the command line, by what they are about; `vitgraft.cli` puts them together."""
