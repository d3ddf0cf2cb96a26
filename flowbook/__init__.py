"""flowbook: diffusion, continuous normalizing flows, flow matching, Reflow and inversion with one velocity."""

__version__ = "0.1.0"
