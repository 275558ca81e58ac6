"""The bundled guests: bare-metal programs in C, their sources beside their built images.

`guests.table` has a row for each; `python -m guests.build` makes the images from the sources.
"""

from guests.table import GUESTS, GuestRow

__all__ = ["GUESTS", "GuestRow"]
