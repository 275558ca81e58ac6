"""The driver's side watched from outside: which rules of the specification it breaks.

`rules` has them as data, `balloon` is where to look, `breaches` what was found.
"""

from vmm.watch.balloon import WatchedBalloon
from vmm.watch.breaches import Breach, Breaches
from vmm.watch.rules import RULES, Rule

__all__ = ["RULES", "Breach", "Breaches", "Rule", "WatchedBalloon"]
