"""The paper's theory as functions of a model: its definitions, bounds and diagnostics, one file a subject."""
