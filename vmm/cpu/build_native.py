"""Compile native.c for every host architecture and write native_code.py (`python -m vmm.cpu.build_native`).

Needs ziglang, which only developers and the tests have.  The same compiler gives the same bytes on every host.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from elftools.elf.elffile import ELFFile

HERE = Path(__file__).parent
TARGETS = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}
SECTIONS = {name: f".text.{name}" for name in ("block", "translated", "rdtsc", "rdtscp", "instruction")}
SHORT_DIGITS = 80  # so much goes on one line
FLAGS = (
    *("-Os", "-std=c11", "-Wall", "-Wextra", "-Werror", "-fPIC", "-fomit-frame-pointer"),
    *("-fno-stack-protector", "-fno-sanitize=all", "-fno-unwind-tables", "-fno-asynchronous-unwind-tables"),
    "-fno-jump-tables",  # a table would be a relocation
)


def machine_code(source: Path, target: str, flags: tuple[str, ...], sections: dict[str, str]) -> dict[str, bytes]:
    """What `source` becomes for one compiler target, by the names of `sections`."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "native.o")
        command = [
            sys.executable,
            "-m",
            "ziglang",
            "cc",
            "-target",
            target,
            *flags,
            "-c",
            source.name,
            "-o",
            str(output),
        ]
        subprocess.run(command, cwd=source.parent, check=True)
        with output.open("rb") as file:
            elf = ELFFile(file)
            for name in sections.values():
                if elf.get_section_by_name(".rela" + name) is not None:
                    raise SystemExit(f"{name} for {target} needs relocations and cannot be copied")
            code = {key: elf.get_section_by_name(name) for key, name in sections.items()}
            return {key: section.data() for key, section in code.items() if section is not None}


def compile_callbacks(target: str) -> dict[str, bytes]:
    """The machine code of both callbacks for one compiler target, by the names of SECTIONS."""
    return machine_code(HERE / "native.c", target, FLAGS, SECTIONS)


def render() -> str:
    """The text of native_code.py."""
    lines = [
        '"""Machine code of native.c, by `platform.machine()`.  Made by build_native.py; do not edit."""',
        "",
        "NATIVE_CODE: dict[str, dict[str, str]] = {",
    ]
    for machine, target in TARGETS.items():
        lines.append(f'    "{machine}": {{')
        for key, code in compile_callbacks(target).items():
            text = code.hex()
            if len(text) <= SHORT_DIGITS:
                lines.append(f'        "{key}": ("{text}"),')
                continue
            lines.append(f'        "{key}": (')
            lines += [f'            "{text[i : i + 96]}"' for i in range(0, len(text), 96)]
            lines.append("        ),")
        lines.append("    },")
    return "\n".join([*lines, "}", ""])


if __name__ == "__main__":
    Path(HERE, "native_code.py").write_text(render())
