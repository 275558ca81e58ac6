"""Ending the run: the exit device, ACPI's PM1a_CNT and pvpanic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.bus import AddressSpace
from devices.effects import NOTHING, Stop, StopKind
from devices.power import ExitDevice, Pm1aControl, Pvpanic


class TestExitDevice:
    @pytest.mark.parametrize(
        ("size", "value", "code"), [(4, 0, 0), (4, 0x1234_5607, 7), (2, 0xFF2A, 42), (1, 0xFF, 255), (8, 1, 1)]
    )
    def test_the_low_byte_is_the_exit_code(self, size: int, value: int, code: int) -> None:
        assert ExitDevice().write(0, size, value, 0).stop == Stop(StopKind.QUIT, code)

    @pytest.mark.parametrize(("offset", "size"), [(1, 1), (2, 2), (3, 1), (1, 4)])
    def test_a_write_beside_the_low_byte_is_ignored(self, offset: int, size: int) -> None:
        assert ExitDevice().write(offset, size, 1, 0) == NOTHING

    @pytest.mark.parametrize("size", [1, 2, 4, 8])
    def test_it_reads_as_zero(self, size: int) -> None:
        assert ExitDevice().read(0, size, 0) == (0, NOTHING)


class TestPm1aControl:
    def test_2000h_powers_off(self) -> None:
        assert Pm1aControl().write(0, 2, 0x2000, 0).stop == Stop(StopKind.POWERED_OFF)

    def test_a_word_that_keeps_sci_en_powers_off_too(self) -> None:
        assert Pm1aControl().write(0, 2, 0x2001, 0).stop == Stop(StopKind.POWERED_OFF)

    def test_the_upper_byte_alone_powers_off(self) -> None:
        assert Pm1aControl().write(1, 1, 0x20, 0).stop == Stop(StopKind.POWERED_OFF)

    def test_a_sleep_type_without_enable_only_reads_back(self) -> None:
        pm1a = Pm1aControl()
        assert pm1a.write(0, 2, 0x1C00, 0) == NOTHING
        assert pm1a.read(0, 2, 0)[0] == 0x1C01

    def test_a_sleep_type_that_does_not_exist_is_said_and_nothing_stops(self) -> None:
        effects = Pm1aControl().write(0, 2, 0x2000 | 5 << 10, 0)
        assert effects.stop is None
        assert [event.kind for event in effects.events] == ["unknown-sleep-type"]
        assert "sleep type 5" in effects.events[0].text

    def test_sleep_enable_and_global_release_read_as_zero(self) -> None:
        pm1a = Pm1aControl()
        pm1a.write(0, 2, 0xFFFF, 0)
        assert pm1a.read(0, 2, 0)[0] == 0x1C03

    def test_sci_en_is_the_hardware_s_and_always_set(self) -> None:
        pm1a = Pm1aControl()
        assert pm1a.read(0, 2, 0)[0] == 1
        pm1a.write(0, 1, 0, 0)
        assert pm1a.read(0, 2, 0)[0] == 1

    def test_what_lies_beyond_the_register_reads_as_zero(self) -> None:
        pm1a = Pm1aControl()
        pm1a.write(1, 1, 0x1C, 0)
        assert pm1a.read(1, 4, 0)[0] == 0x1C
        assert pm1a.read(0, 8, 0)[0] == 0x1C01

    def test_reset_equals_freshly_built(self) -> None:
        pm1a = Pm1aControl()
        pm1a.write(0, 2, 0x1C02, 0)
        assert pm1a != Pm1aControl()
        pm1a.reset()
        assert pm1a == Pm1aControl()


class TestPvpanic:
    def test_it_understands_panicked_and_crash_loaded(self) -> None:
        assert Pvpanic().read(0, 1, 0) == (3, NOTHING)

    @pytest.mark.parametrize("value", [1, 3, 0xFF])
    def test_bit_0_stops_the_machine(self, value: int) -> None:
        assert Pvpanic().write(0, 1, value, 0).stop == Stop(StopKind.PANICKED)

    @pytest.mark.parametrize("value", [2, 0xFE])
    def test_bit_1_is_told_and_the_guest_goes_on(self, value: int) -> None:
        effects = Pvpanic().write(0, 1, value, 0)
        assert effects.stop is None
        assert [event.kind for event in effects.events] == ["crash-loaded"]

    @pytest.mark.parametrize("value", [0, 4, 0xFC])
    def test_other_events_are_ignored(self, value: int) -> None:
        assert Pvpanic().write(0, 1, value, 0) == NOTHING

    def test_it_is_one_byte_wide_on_the_bus(self) -> None:
        ports = AddressSpace("port", 16)
        ports.add(0x505, 1, Pvpanic(), "pvpanic")
        assert ports.read(0x504, 4, 0)[0] == 0xFFFF03FF
        assert ports.write(0x504, 2, 0x0100, 0).stop == Stop(StopKind.PANICKED)


@given(st.sampled_from([1, 2, 4, 8]), st.integers(0, 7), st.integers(0, 2**64 - 1))
def test_every_access_has_an_answer(size: int, offset: int, value: int) -> None:
    for device in (ExitDevice(), Pm1aControl(), Pvpanic()):
        device.write(offset, size, value & (1 << 8 * size) - 1, 0)
        read, effects = device.read(offset, size, 0)
        assert 0 <= read < 1 << 8 * size
        assert effects == NOTHING
        device.reset()
        assert device == type(device)()
