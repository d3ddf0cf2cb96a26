"""What only the notebooks use: figures, and the checks of their exercises."""
