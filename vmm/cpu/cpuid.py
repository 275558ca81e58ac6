"""What CPUID says, where it must differ from what Unicorn would say.

Unicorn answers as an Intel Haswell reduced to what it can translate.  Hidden: RDRAND and RDSEED (they would take the
host's randomness and no run would be repeatable), x2APIC and TSC-deadline (their MSRs do not work), ERMS (each
iteration is a block here, and takes the time of one: words are eight times as fast as bytes).  Added: a
hypervisor leaf, an invariant time-stamp counter, and its frequency, so that no guest has to measure it.
"""

from __future__ import annotations

from vmm.cpu.layout import CR4_OSXSAVE

Leaf = tuple[int, int, int, int]  # EAX, EBX, ECX, EDX

TSC_HZ = 1_000_000_000
HIGHEST_BASIC_LEAF = 0x16
HIGHEST_OWN_BASIC_LEAF = 0x0D  # Unicorn's own leaves end here
BRAND = b"balloon-vmm processor (Unicorn)"
HYPERVISOR_LEAF = 0x40000000
HYPERVISOR_SIGNATURE = b"balloon-vmm\0"

_LEAF1_ECX_HIDDEN = 1 << 30 | 1 << 24 | 1 << 21 | 1 << 27  # RDRAND, TSC-deadline, x2APIC; OSXSAVE is computed
_LEAF1_ECX_OSXSAVE = 1 << 27
_LEAF1_ECX_HYPERVISOR = 1 << 31
_LEAF7_EBX_HIDDEN = 1 << 18 | 1 << 9  # RDSEED, enhanced REP MOVSB and STOSB
_LEAF80000007_EDX_INVARIANT_TSC = 1 << 8
_NOTHING: Leaf = (0, 0, 0, 0)


def _words(text: bytes) -> tuple[int, ...]:
    return tuple(int.from_bytes(text[i : i + 4], "little") for i in range(0, len(text), 4))


_BRAND_WORDS = _words(BRAND.ljust(48, b"\0"))
_SIGNATURE_WORDS = _words(HYPERVISOR_SIGNATURE)
_VENDOR_EBX, _VENDOR_EDX, _VENDOR_ECX = _words(b"GenuineIntel")


def answer(leaf: int, subleaf: int, cr4: int, host: dict[tuple[int, int], Leaf]) -> Leaf | None:
    """The four registers for a leaf, or None where Unicorn's own answer holds.

    `host` holds Unicorn's answers to leaves (1, 0) and (7, 0)."""
    if leaf == 0:
        return HIGHEST_BASIC_LEAF, _VENDOR_EBX, _VENDOR_ECX, _VENDOR_EDX
    if leaf == 1:
        eax, ebx, ecx, edx = host[1, 0]
        ecx = ecx & ~_LEAF1_ECX_HIDDEN | _LEAF1_ECX_HYPERVISOR | (_LEAF1_ECX_OSXSAVE if cr4 & CR4_OSXSAVE else 0)
        return eax, ebx, ecx, edx
    if leaf == 7:
        eax, ebx, ecx, edx = host[7, 0]
        return (eax, ebx & ~_LEAF7_EBX_HIDDEN, ecx, edx) if subleaf == 0 else _NOTHING
    if leaf == 0x15:
        return 1, 1, TSC_HZ, 0  # TSC = crystal * 1 / 1
    if leaf == 0x16:
        return TSC_HZ // 1_000_000, TSC_HZ // 1_000_000, TSC_HZ // 10_000_000, 0  # base, maximum and bus MHz
    if HIGHEST_OWN_BASIC_LEAF < leaf < HYPERVISOR_LEAF:
        return _NOTHING
    if leaf == HYPERVISOR_LEAF:
        return HYPERVISOR_LEAF, *_SIGNATURE_WORDS  # type: ignore[return-value]
    if 0x80000002 <= leaf <= 0x80000004:
        first = 4 * (leaf - 0x80000002)
        return _BRAND_WORDS[first], _BRAND_WORDS[first + 1], _BRAND_WORDS[first + 2], _BRAND_WORDS[first + 3]
    if leaf == 0x80000007:
        return 0, 0, 0, _LEAF80000007_EDX_INVARIANT_TSC
    return _NOTHING if HYPERVISOR_LEAF < leaf < 0x80000000 else None
