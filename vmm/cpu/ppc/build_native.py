"""Compile native.c for every host architecture and write native_code.py (`python -m vmm.cpu.ppc.build_native`).

Needs ziglang, which only developers and the tests have.  The same compiler gives the same bytes on every host.
"""

from __future__ import annotations

from pathlib import Path

from vmm.cpu.build_native import FLAGS, TARGETS, machine_code

HERE = Path(__file__).parent
LINE = 120  # as the formatter has it
SECTIONS = {"block": ".text.block", "translated": ".text.translated"}


def render() -> str:
    """The text of native_code.py."""
    lines = [
        '"""Machine code of native.c, by `platform.machine()`.  Made by build_native.py; do not edit."""',
        "",
        "NATIVE_CODE: dict[str, dict[str, str]] = {",
    ]
    for machine, target in TARGETS.items():
        lines.append(f'    "{machine}": {{')
        for key, code in machine_code(HERE / "native.c", target, FLAGS, SECTIONS).items():
            text = code.hex()
            line = f'        "{key}": "{text}",'
            if len(line) <= LINE:
                lines.append(line)
                continue
            lines.append(f'        "{key}": (')
            lines += [f'            "{text[i : i + 96]}"' for i in range(0, len(text), 96)]
            lines.append("        ),")
        lines.append("    },")
    return "\n".join([*lines, "}", ""])


if __name__ == "__main__":
    Path(HERE, "native_code.py").write_text(render())
