"""The errors that are somebody's fault, and whose.

`DriverError` is the guest driver's: it is contained where the device was notified and never ends the machine.
`ConfigError` is the user's: one sentence, exit status 2.  Every other exception is a bug of this project.
"""


class ConfigError(ValueError):
    """The user asked for something that cannot be: the message is one complete sentence for them."""


class DriverError(Exception):
    """The driver broke a rule of the virtio specification.

    `section` is the section that states the rule (e.g. "2.7.13"), `detail` says what the driver did instead.
    `queue` and `head` name the place once it is known; -1 means "not known".
    """

    def __init__(self, section: str, detail: str, *, queue: int = -1, head: int = -1) -> None:
        super().__init__(section, detail)
        self.section = section
        self.detail = detail
        self.queue = queue
        self.head = head

    def __str__(self) -> str:
        return f"{self.detail} (virtio §{self.section})"


class OutsideRam(DriverError):
    """An address range that is not wholly inside guest RAM."""

    def __init__(self, gpa: int, length: int, section: str = "2.6") -> None:
        super().__init__(section, f"the {length} bytes at {gpa:#x} are not all in guest RAM")
        self.gpa = gpa
        self.length = length
