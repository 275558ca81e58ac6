"""The process that one mutation is tried in: `python -m vmm.conformance.mutant NAME`.

The module is changed while it is imported, before anything else of the device side is.  Exit status 10 if the statement
noticed, 11 if it did not; the standard output says what it said.  Where the device's code breaks down the statement has
not noticed: a mistake has to be one that the device survives.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType

from vmm.conformance.mutations import CAUGHT, NOT_CAUGHT, Mutation, mutations


class NotApplicable(RuntimeError):
    """The text that a mutation changes does not stand in its module exactly once."""


class _Loader(SourceFileLoader):
    """Compiles the changed source; nothing of it is kept."""

    def __init__(self, mutation: Mutation, path: str) -> None:
        super().__init__(mutation.module, path)
        self._mutation = mutation

    def get_code(self, fullname: str) -> CodeType:
        source = self.get_data(self.path).decode()
        count = source.count(self._mutation.before)
        if count != 1:
            raise NotApplicable(f"{self._mutation.name!r}: its text stands {count} times in {fullname}, not once")
        return compile(source.replace(self._mutation.before, self._mutation.after), self.path, "exec")


class _Finder(MetaPathFinder):
    def __init__(self, mutation: Mutation) -> None:
        self._mutation = mutation

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._mutation.module:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(self._mutation, spec.origin)
        return spec


def main(name: str) -> int:
    mutation = next(mutation for mutation in mutations() if mutation.name == name)
    if mutation.module in sys.modules:
        raise NotApplicable(f"{mutation.module} was imported too early")
    sys.meta_path.insert(0, _Finder(mutation))

    from vmm.conformance.runner import select, select_transports, try_one

    (statement,), (row,) = select([mutation.statement]), select_transports([mutation.transport])
    result = try_one(statement, row)
    if result.verdict != "failed":
        print(f"{statement.id} {'passes' if result.verdict == 'passed' else result.verdict} all the same")
        return NOT_CAUGHT
    print(f"the device's code breaks down: {result.detail}" if result.crashed else result.detail)
    return NOT_CAUGHT if result.crashed else CAUGHT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
