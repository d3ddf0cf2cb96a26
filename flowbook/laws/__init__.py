"""Is my implementation right? Checks of a reader's own velocity, loss, sampler, path and density, whatever the library.

Each runs the code on a problem whose answer is known in closed form. It returns a sentence that begins with "right",
or raises :class:`Violation`, an AssertionError, with a sentence that says what is wrong: time reversed, sign flipped,
noise drawn twice, a step too few. The same from the shell: ``flowbook laws mymodule:loss``.
"""

from flowbook.laws.convention import Convention, ConventionOptions
from flowbook.laws.density import check_log_prob
from flowbook.laws.diagnosis import Violation, close, diagnose, diagnose_number
from flowbook.laws.loss import check_loss
from flowbook.laws.path import check_path
from flowbook.laws.sampler import check_sampler
from flowbook.laws.target import mixture
from flowbook.laws.velocity import check_velocity

__all__ = [
    "Convention",
    "ConventionOptions",
    "Violation",
    "check_log_prob",
    "check_loss",
    "check_path",
    "check_sampler",
    "check_velocity",
    "close",
    "diagnose",
    "diagnose_number",
    "mixture",
]
