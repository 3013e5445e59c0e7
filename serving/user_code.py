"""A user's own Python files: packed before a run, carried in the model, loaded under a name that can't clash.

The CLI packs (`pack`), the stages and the server load.  Modules run as ``_retrain_user_<content hash>.<module>``, so
two versions of one file live side by side in one process; an ``import`` of a file packed beside finds the packed one.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import sys
import traceback
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from contracts.errors import ConfigError, Finding

PREFIX = "_retrain_user_"
MAX_BYTES = 16 * 1024 * 1024
"""Limit of all files together, unpacked: this carries source code, not data."""
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class UserCode:
    """Python files by their path relative to the pipeline file's folder, ``models/mine.py``."""

    files: Mapping[str, bytes]
    commit: str = ""
    """Git commit the files were packed at, ``-dirty`` appended when they differed from it; empty when not in git."""

    def __bool__(self) -> bool:
        return bool(self.files)

    @cached_property
    def modules(self) -> dict[str, str]:
        """Dotted module name -> sha256 of the file, sorted by name."""
        return {module_name(path): hashlib.sha256(data).hexdigest() for path, data in sorted(self.files.items())}

    @cached_property
    def sha256(self) -> str:
        """Hash of names and contents; empty without files."""
        lines = "".join(f"{digest} {name}\n" for name, digest in self.modules.items())
        return hashlib.sha256(lines.encode()).hexdigest() if lines else ""

    @property
    def package(self) -> str:
        """The name under which the modules are loaded in this process."""
        return PREFIX + self.sha256[:16]

    def write(self, folder: Path) -> None:
        """Lay the files out under `folder`."""
        for path, data in self.files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)

    def register(self) -> None:
        """Make the modules importable in this process, under `package`."""
        if self.files:
            _FINDER.packages[self.package] = self

    def load(self, module: str) -> ModuleType:
        """Import a packed module, else an installed one.

        Raises
        ------
        ConfigError
            When there is no such module, or when importing it fails.
        """
        self.register()
        name = f"{self.package}.{module}" if self._holds(module) else module
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = plain_name(error.name or "")
            remedy = "put the file beside the pipeline file, list it under `code`, or install its package"
            raise ConfigError(f"cannot import {module}: there is no module {missing}", remedy=remedy) from error
        except Exception as error:
            what = f"SyntaxError: {error}" if isinstance(error, SyntaxError) else blame(error)
            raise ConfigError(f"importing {module} failed: {what}", remedy=f"mend {module}") from error

    def resolve(self, reference: str) -> Any:
        """Return what ``module:attribute`` names; see `load`."""
        module, _, attribute = reference.partition(":")
        found: Any = self.load(module)
        for part in attribute.split("."):
            if not hasattr(found, part):
                raise ConfigError(
                    f"{reference}: {module} has no {attribute}", remedy="name a class, instance or function"
                )
            found = getattr(found, part)
        return found

    def _holds(self, module: str) -> bool:
        return any(name == module or name.startswith(f"{module}.") for name in self.modules)


def module_name(path: str) -> str:
    """Return the dotted name of a packed file: ``models/mine.py`` -> ``models.mine``."""
    return ".".join(PurePosixPath(path).with_suffix("").parts).removesuffix(".__init__")


def plain_name(name: str) -> str:
    """Return a type's or module's name as the user wrote it, without the package it was loaded into."""
    if not name.startswith(PREFIX):
        return name
    return name.partition(".")[2] or name


def blame(error: BaseException) -> str:
    """Say what user code raised, and where; not the text, which may hold cells or credentials."""
    frames = traceback.extract_tb(error.__traceback__)
    last = next((frame for frame in reversed(frames) if PREFIX in frame.filename), frames[-1])
    name = f"{plain_name(last.filename.strip('<>')).replace('.', '/')}.py" if PREFIX in last.filename else last.filename
    return f"{type(error).__name__} in {name}, line {last.lineno}"


def collect(folder: Path, modules: Sequence[str], extra: Sequence[str] = (), *, elsewhere: bool = False) -> UserCode:
    """Gather the files of `modules` and the `extra` paths under `folder`.

    A module that is no file there must be installed, and is not gathered; `elsewhere`: where it runs, not here.

    Raises
    ------
    ConfigError
        With a finding for every module or file that is missing.
    """
    files: dict[str, bytes] = {}
    findings: list[Finding] = []
    for module in modules:
        stem = module.replace(".", "/")
        path = next((p for p in (f"{stem}.py", f"{stem}/__init__.py") if (folder / p).is_file()), None)
        if path is not None:
            files[path] = (folder / path).read_bytes()
        elif not elsewhere and importlib.util.find_spec(module.split(".")[0]) is None:
            where = f"module {module}"
            findings.append(
                Finding(where=where, what="is neither beside the pipeline file nor installed", remedy=f"add {stem}.py")
            )
    for path in extra:
        if not _is_safe(path):
            findings.append(Finding(where=f"code: {path}", what="is not a .py file under the pipeline file's folder"))
        elif not (folder / path).is_file():
            findings.append(Finding(where=f"code: {path}", what="does not exist", remedy="mend the path, or remove it"))
        else:
            files[PurePosixPath(path).as_posix()] = (folder / path).read_bytes()
    if findings:
        raise ConfigError("your own code is not complete", findings=findings)
    return UserCode(files)


def pack(
    folder: Path, modules: Sequence[str], extra: Sequence[str] = (), commit: str = "", *, elsewhere: bool = False
) -> bytes:
    """Return the files as a zip whose bytes depend on names, contents and `commit` only; see `collect`."""
    code = collect(folder, modules, extra, elsewhere=elsewhere)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path, data in sorted(code.files.items()):
            info = zipfile.ZipInfo(path, _EPOCH)
            info.external_attr = 0o644 << 16
            info.create_system = 3
            archive.writestr(info, data)
        archive.comment = commit.encode()
    return buffer.getvalue()


def unpack(data: bytes) -> UserCode:
    """Read what `pack` wrote.

    Raises
    ------
    ConfigError
        When it is no such zip, or holds paths or sizes that `pack` would not write.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > MAX_BYTES or not all(_is_safe(e.filename) for e in entries):
                raise ConfigError(
                    "the packed code holds more than Python files",
                    remedy="pack it with `retrain run` or `retrain submit`",
                )
            return UserCode({entry.filename: archive.read(entry) for entry in entries}, archive.comment.decode())
    except (zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the packed code is damaged: {error}", remedy="pack it with `retrain run` or `retrain submit`"
        ) from None


def read_folder(folder: Path) -> UserCode:
    """Read files that `UserCode.write` laid out; a folder that is not there holds none."""
    return UserCode({p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*.py"))})


def _is_safe(path: str) -> bool:
    pure = PurePosixPath(path)
    parts = pure.with_suffix("").parts
    return pure.suffix == ".py" and not pure.is_absolute() and all(part.isidentifier() for part in parts)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds ``_retrain_user_<hash>`` packages in memory: a lazy import works after the folder is gone."""

    def __init__(self) -> None:
        self.packages: dict[str, UserCode] = {}

    def find_spec(
        self,
        name: str,
        path: Any = None,  # noqa: ARG002  the import system's interface
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, module = name.partition(".")
        code = self.packages.get(package)
        if code is None:
            return None
        sources = {module_name(p): p for p in code.files}
        is_package = not module or any(other.startswith(f"{module}.") for other in sources)
        if module and module not in sources and not is_package:
            return None
        loader = _Loader(code, sources.get(module))
        return importlib.util.spec_from_loader(name, loader, origin=sources.get(module), is_package=is_package)


class _Loader(importlib.abc.Loader):
    def __init__(self, code: UserCode, path: str | None) -> None:
        self._code = code
        self._path = path

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:  # noqa: ARG002
        return None

    def exec_module(self, module: ModuleType) -> None:
        if self._path is None:
            return
        # An import statement looks up __import__ in its own module's builtins: also inside functions, also much later.
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": self._import}
        exec(compile(self._code.files[self._path], f"<{module.__name__}>", "exec"), module.__dict__)  # noqa: S102

    def get_source(self, name: str) -> str:  # noqa: ARG002
        """Return the source, so that tracebacks show its lines."""
        return self._code.files[self._path].decode() if self._path else ""

    def _import(
        self, name: str, namespace: Any = None, local: Any = None, fromlist: Any = (), level: int = 0
    ) -> ModuleType:
        if level == 0 and self._code._holds(name):
            module = importlib.import_module(f"{self._code.package}.{name}")
            for item in fromlist or ():
                if self._code._holds(f"{name}.{item}"):
                    importlib.import_module(f"{self._code.package}.{name}.{item}")
            return module if fromlist else sys.modules[f"{self._code.package}.{name.split('.')[0]}"]
        return builtins.__import__(name, namespace, local, fromlist or (), level)


_FINDER = _Finder()
sys.meta_path.insert(0, _FINDER)
