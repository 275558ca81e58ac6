"""A balloon that reads wrong payloads as another monitor does: rules before the handlers of its queues.

Owns which chains a rule is about, and what is left of a chain for the handler.  Refuses to know what the handlers do.
Without such rules (`policy.OUR_PAYLOAD`) nothing of this is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

import numpy as np

from devices.virtio.balloon.pages import PFN
from devices.virtio.chains import Chains, Flags, Index
from devices.virtio.notifications import NO_NOTIFICATIONS, Notifications
from devices.virtio.policy import PayloadRules
from devices.virtio.queue import Queue
from devices.virtio.service import Service

Handler: TypeAlias = Callable[[Queue, Chains, int], Notifications]
_Handlers: TypeAlias = Mapping[str, Handler]


def imitated(device: Service, rules: PayloadRules, handlers: _Handlers) -> _Handlers:
    """The handlers of `device` behind the rules: those of page requests and of statistics; the others are as before."""
    changed: dict[str, Handler] = {
        name: partial(_page_request, device, rules, handlers[name]) for name in ("inflateq", "deflateq")
    }
    if rules.longest_stats_bytes is not None:
        changed["statsq"] = partial(_statistics, rules.longest_stats_bytes, handlers["statsq"])
    return {**handlers, **changed}


def _page_request(
    device: Service, rules: PayloadRules, handler: Handler, queue: Queue, chains: Chains, now_ns: int
) -> Notifications:
    if rules.head_only:
        chains = _heads_only(chains)
    sizes = np.array(chains.readable_bytes(), np.int64)
    longest = rules.longest_array_bytes if queue.name == "inflateq" else None
    long = sizes > (sizes if longest is None else longest)
    odd = (sizes % PFN.itemsize != 0) & ~long
    told, good = NO_NOTIFICATIONS, np.ones(len(sizes), np.bool_)
    for which, treatment, what in (
        (long, rules.long_array, "longer than others take"),
        (odd, rules.odd_array, f"no multiple of {PFN.itemsize} bytes"),
    ):
        if treatment is not None and which.any():
            good &= ~which
            text = f"{queue.name}: {int(which.sum())} requests are {what}"
            told |= device.event("guest-error", text)
            told |= device.give_up(queue, _chosen(chains, which), treatment)
    if good.all():
        return told | handler(queue, chains, now_ns)
    return told | handler(queue, _chosen(chains, good), now_ns) if good.any() else told


def _statistics(longest_bytes: int, handler: Handler, queue: Queue, chains: Chains, now_ns: int) -> Notifications:
    return handler(queue, _shortened(chains, longest_bytes), now_ns)


def _heads_only(chains: Chains) -> Chains:
    """The same chains, of which nothing but the first descriptor is known."""
    first = chains.first[:-1]
    return _with(chains, first, np.arange(len(first) + 1))


def _chosen(chains: Chains, which: Flags) -> Chains:
    """Those chains, at least one, for which `which` is true."""
    counts = (chains.first[1:] - chains.first[:-1])[which]
    descriptors = np.flatnonzero(np.repeat(which, chains.first[1:] - chains.first[:-1]))
    first = np.concatenate((np.zeros(1, np.intp), np.cumsum(counts)))
    whole = _with(chains, descriptors, first)
    return Chains(
        chains.head[which],
        chains.slots[which],
        first,
        whole.addr,
        whole.length,
        whole.writable,
        chains.buffer_id[which],
    )


def _shortened(chains: Chains, longest_bytes: int) -> Chains:
    """Only the first descriptor of each chain, and of that no more than `longest_bytes`."""
    heads = _heads_only(chains)
    length = np.minimum(heads.length, np.uint64(longest_bytes))
    return Chains(heads.head, heads.slots, heads.first, heads.addr, length, heads.writable, heads.buffer_id)


def _with(chains: Chains, descriptors: Index, first: Index) -> Chains:
    return Chains(
        chains.head,
        chains.slots,
        first,
        chains.addr[descriptors],
        chains.length[descriptors],
        chains.writable[descriptors],
        chains.buffer_id,
    )
