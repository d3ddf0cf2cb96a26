"""Used by the notebooks only: figures, and the checks of the exercises."""
