"""Every public name of the package is documented, wherever its file is."""

import ast
from collections.abc import Iterator
from pathlib import Path

import maskkit

ROOT = Path(maskkit.__file__).parent
Named = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def public_modules() -> list[Path]:
    """Modules without a name that begins with an underscore on their path; ``__init__`` and ``__main__`` are public."""
    files = (path.relative_to(ROOT) for path in sorted(ROOT.rglob("*.py")))
    return [file for file in files if all(map(is_public, (*file.parent.parts, file.stem)))]


def is_public(name: str) -> bool:
    return not name.startswith("_") or name in ("__init__", "__main__")


def public_names(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Named]]:
    """Public functions and classes, methods and properties, also below ``if`` and ``try``; with their full names."""
    for statement in body:
        if isinstance(statement, Named):
            if not statement.name.startswith("_") and not is_documented_elsewhere(statement):
                yield prefix + statement.name, statement
                if isinstance(statement, ast.ClassDef):
                    yield from public_names(statement.body, f"{prefix}{statement.name}.")
        elif isinstance(statement, ast.If | ast.Try):
            for field in ("body", "orelse", "finalbody"):
                yield from public_names(getattr(statement, field, []), prefix)


def is_documented_elsewhere(statement: Named) -> bool:
    """An overload, an override, or the setter of a property."""
    decorators = {ast.unparse(d).rpartition(".")[2] for d in statement.decorator_list}
    return bool(decorators & {"overload", "override", "setter", "deleter"})


def undocumented(source: str) -> list[str]:
    """Public names of a module that have no docstring."""
    module = ast.parse(source)
    names = [("the module", module), *public_names(module.body)]
    return [name for name, node in names if not (ast.get_docstring(node) or "").strip()]


def test_every_public_name_has_a_docstring() -> None:
    found = {str(module): undocumented((ROOT / module).read_text(encoding="utf-8")) for module in public_modules()}
    assert not {module: names for module, names in found.items() if names}


def test_what_the_package_offers_has_a_docstring() -> None:
    assert not [name for name in maskkit.__all__ if not (getattr(maskkit, name).__doc__ or "").strip()]


def test_modules_are_found() -> None:
    assert {Path("__init__.py"), Path("api.py")} <= set(public_modules())


def test_names_without_a_docstring_are_found() -> None:
    source = '''
class Documented:
    """Yes."""

    field: int = 0

    def method(self): ...

    @property
    def value(self): ...

    @value.setter
    def value(self, value): ...

    @override
    def inherited(self): ...

    def _own(self): ...


def documented():
    """Yes."""

    def inner(): ...


try:
    import fast
except ImportError:
    pass
else:
    def function(): ...


class _Own:
    def method(self): ...
'''
    assert undocumented(source) == ["the module", "Documented.method", "Documented.value", "function"]
