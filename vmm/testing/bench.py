"""A machine without a CPU: buses, RAM, one device and the guest time, held together for a test.

`BenchBus` is a `Bus` over two address spaces; it carries out what accesses bring about: messages reach their listeners
(or RAM, where they point there), lines are remembered, events collected.  `DirectBench` and `BusBench` give the host's
side of a device the same three verbs over both ways in: `host(...)` delivers what a host command returned, `advance`
lets guest time pass with every deadline on the way, `events` is what watchers were told.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from vmm.testing.direct import DirectTransport
from vmm.testing.protocols import EventLike, Memory, NotificationsLike, Transport, VirtioDevice
from vmm.testing.ring import DeviceViolation

MOST_TIMES_AT_ONE_DEADLINE = 1000
"""A device may leave a rest of its work for a deadline that has come already, but not without end."""


class EffectsLike(Protocol):
    """What one access asks for: interrupt messages (address, data), lines (name, level) and events."""

    @property
    def messages(self) -> Sequence[tuple[int, int]]: ...

    @property
    def lines(self) -> Sequence[tuple[str, bool]]: ...

    @property
    def events(self) -> Sequence[EventLike]: ...


class Space(Protocol):
    """An address space: ports, or memory that is not RAM."""

    def read(self, address: int, size: int, now_ns: int) -> tuple[int, EffectsLike]: ...

    def write(self, address: int, size: int, value: int, now_ns: int) -> EffectsLike: ...


class BenchMemory(Memory, Protocol):
    """RAM that can say what is part of it."""

    def contains(self, gpa: int, length: int) -> bool: ...


class BenchBus:
    """A `Bus` of `memory`, `ports` and `mmio`.  `now_ns` is the guest time of the next access."""

    def __init__(self, memory: BenchMemory, ports: Space, mmio: Space) -> None:
        self.memory = memory
        self.ports = ports
        self.mmio = mmio
        self.now_ns = 0
        self.messages: list[tuple[int, int]] = []
        self.events: list[EventLike] = []
        self._lines: dict[str, bool] = {}
        self._listeners: defaultdict[int, list[Callable[[int], None]]] = defaultdict(list)

    def port_read(self, port: int, size: int) -> int:
        return self._result(self.ports.read(port, size, self.now_ns))

    def port_write(self, port: int, size: int, value: int) -> None:
        self.deliver(self.ports.write(port, size, value, self.now_ns))

    def mmio_read(self, gpa: int, size: int) -> int:
        return self._result(self.mmio.read(gpa, size, self.now_ns))

    def mmio_write(self, gpa: int, size: int, value: int) -> None:
        self.deliver(self.mmio.write(gpa, size, value, self.now_ns))

    def _result(self, answer: tuple[int, EffectsLike]) -> int:
        self.deliver(answer[1])
        return answer[0]

    def deliver(self, effects: EffectsLike) -> None:
        """Carry out what a call brought about."""
        for address, data in effects.messages:
            self.messages.append((address, data))
            if self.memory.contains(address, 4):
                self.memory.write(address, data.to_bytes(4, "little"))
            for callback in self._listeners[address]:
                callback(data)
        self._lines.update(effects.lines)
        self.events.extend(effects.events)

    def listen(self, address: int, callback: Callable[[int], None]) -> None:
        self._listeners[address].append(callback)

    def line_level(self, name: str) -> bool:
        return self._lines.get(name, False)


class TimedDevice(VirtioDevice, Protocol):
    """A virtio device with deadlines of its own."""

    def next_deadline_ns(self) -> int | None: ...

    def advance(self, now_ns: int) -> NotificationsLike: ...


NotificationsT = TypeVar("NotificationsT", bound=NotificationsLike, contravariant=True)


class TransportFunction(Protocol[NotificationsT]):
    """The device's end of a transport, for devices whose calls return a `NotificationsT`."""

    def signal(self, notifications: NotificationsT) -> EffectsLike: ...

    def next_deadline_ns(self) -> int | None: ...

    def advance(self, now_ns: int) -> EffectsLike: ...


class DirectBench:
    """One device, reached directly."""

    def __init__(self, transport: DirectTransport, device: TimedDevice) -> None:
        self.transport = transport
        self.device = device

    @property
    def now_ns(self) -> int:
        return self.transport.now_ns

    @property
    def events(self) -> list[EventLike]:
        return self.transport.events

    def host(self, notifications: NotificationsLike) -> None:
        """Deliver what a command on the host's side returned."""
        self.transport.deliver(notifications)

    def advance(self, duration_ns: int) -> None:
        """Let guest time pass, with every deadline on the way."""
        end, progress = self.now_ns + duration_ns, _Progress()
        while (deadline := self.device.next_deadline_ns()) is not None and deadline <= end:
            progress.served(deadline)
            self.transport.now_ns = max(deadline, self.now_ns)
            self.transport.deliver(self.device.advance(self.now_ns))
        self.transport.now_ns = end


class BusBench(Generic[NotificationsT]):
    """One device behind its transport on a bench bus."""

    def __init__(self, bus: BenchBus, transport: Transport, function: TransportFunction[NotificationsT]) -> None:
        self.bus = bus
        self.transport = transport
        self.function = function

    @property
    def now_ns(self) -> int:
        return self.bus.now_ns

    @property
    def events(self) -> list[EventLike]:
        return self.bus.events

    def host(self, notifications: NotificationsT) -> None:
        """Deliver what a command on the host's side returned."""
        self.bus.deliver(self.function.signal(notifications))

    def advance(self, duration_ns: int) -> None:
        """Let guest time pass, with every deadline on the way."""
        end, progress = self.now_ns + duration_ns, _Progress()
        while (deadline := self.function.next_deadline_ns()) is not None and deadline <= end:
            progress.served(deadline)
            self.bus.now_ns = max(deadline, self.now_ns)
            self.bus.deliver(self.function.advance(self.now_ns))
        self.bus.now_ns = end


class _Progress:
    """Notices a deadline that is served again and again and never goes away."""

    def __init__(self) -> None:
        self._deadline_ns = -1
        self._served = 0

    def served(self, deadline_ns: int) -> None:
        self._served = self._served + 1 if deadline_ns == self._deadline_ns else 1
        self._deadline_ns = deadline_ns
        if self._served > MOST_TIMES_AT_ONE_DEADLINE:
            raise DeviceViolation(f"the deadline stays at {deadline_ns} ns however often it is served")
