"""Arrays in files, read with care: .npy, .npz, .csv, .txt, and .pt as CIFAR-N is published.

Shapes and types are known from the headers before a value is read or decompressed, and nothing is
unpickled that could run code.
"""

import os
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray

# A .csv, .txt or .pt of labels has a few megabytes.
LARGEST_LABEL_FILE = 2**26
_CHUNK = 2**24


@dataclass(frozen=True)
class StoredArray:
    """An array in a file, of which the header has been read."""

    where: str
    """The file, and the array where it holds several."""
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    _values: Callable[[], NDArray[Any]]

    def read(self) -> NDArray[Any]:
        """Read the values.

        Raises:
            ValueError: They are damaged, truncated, or more than this machine's memory.
        """
        size = prod(self.shape) * self.dtype.itemsize
        if size > memory_size():
            raise ValueError(
                f"{self.where}: {self.shape} {self.dtype} needs {size / 2**30:.0f} GiB, more than "
                f"the memory of this machine ({memory_size() / 2**30:.0f} GiB)"
            )
        try:
            return self._values()
        except Exception as error:  # zlib.error, BadZipFile, EOFError, LZMAError, MemoryError, ...
            raise ValueError(f"{self.where} is damaged or truncated: {reason(error)}") from error


#: Reads the header of one array.
Opener = Callable[[], StoredArray]


def open_arrays(path: Path) -> dict[str, Opener]:
    """Return a function for each array in a file, by name; a file of one array names it ''.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no regular file, too large, or of another format.
    """
    if not os.path.isfile(path):
        if os.path.exists(path):
            raise ValueError(f"{path} is no regular file")
        raise FileNotFoundError(f"no file {str(path)!r}")
    if path.suffix not in _READERS:
        raise ValueError(f"{path} must be {', '.join(_READERS)}, got {path.suffix!r}")
    size = os.path.getsize(path)
    if path.suffix in (".csv", ".txt", ".pt") and size > LARGEST_LABEL_FILE:
        raise ValueError(
            f"{path} has {size} bytes, at most {LARGEST_LABEL_FILE} are read; save it with "
            "numpy.save"
        )
    try:
        return _READERS[path.suffix](path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {reason(error)}") from error


def memory_size() -> int:
    """Return the bytes of this machine's memory, or 64 GiB where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**36


def reason(error: Exception) -> str:
    """Return the kind of an error and the start of its text, in one line."""
    return f"{type(error).__name__} {' '.join(str(error).split())[:200]}".rstrip()


def check_labels(
    array: StoredArray | NDArray[Any], length: int, where: str, kinds: str = "iuf"
) -> None:
    """Raise a ValueError unless shape and type are those of ``length`` labels.

    Args:
        array: Its shape and type are looked at, not its values.
        length: Number of images.
        where: Names the array in messages.
        kinds: Allowed kinds of NumPy types; text files give floats.
    """
    if array.shape != (length,) or length == 0:
        raise ValueError(
            f"{where} must hold {length or 'some'} labels in one row, got shape {array.shape}"
        )
    if array.dtype.kind not in kinds:
        numbers = "whole numbers" if "f" in kinds else "integers"
        raise ValueError(f"{where} must hold {numbers}, got {array.dtype}; save y.astype('int64')")


def as_labels(array: NDArray[Any], num_classes: int, where: str) -> NDArray[np.int64]:
    """Return numbers (N,) as a new int64 array.

    Raises:
        ValueError: One is no whole number in [0, num_classes); with its row, counted from 0.
    """
    with np.errstate(invalid="ignore"):
        whole = np.trunc(array) == array
    for good, allowed in (
        (whole, "hold whole numbers"),
        ((array >= 0) & (array < num_classes), f"be in [0, {num_classes})"),
    ):
        if not good.all():
            row = int(good.argmin())
            raise ValueError(f"{where} must {allowed}, got {array[row]} (row {row})")
    return array.astype(np.int64)


def _npy(path: Path) -> dict[str, Opener]:
    def opened() -> IO[bytes]:
        return path.open("rb")

    return {"": partial(_stored, str(path), opened, os.path.getsize(path))}


def _npz(path: Path) -> dict[str, Opener]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:  # whatever a damaged directory raises
        raise ValueError(
            f"{path}: is no .npz archive ({reason(error)}); write one with numpy.savez"
        ) from error
    found: dict[str, Opener] = {}
    for member in members:
        name = member.filename.removesuffix(".npy")
        if name in found:
            raise ValueError(f"{path}: {name} is stored twice")
        opened = partial(_open_member, path, member)
        found[name] = partial(_stored, f"{path}: {name}", opened, member.file_size)
    return found


def _open_member(path: Path, member: zipfile.ZipInfo) -> IO[bytes]:
    if member.flag_bits & 1:
        raise ValueError("it is encrypted")
    with zipfile.ZipFile(path) as archive:
        return archive.open(member)  # holds the archive's file until it is closed itself


def _stored(where: str, opened: Callable[[], IO[bytes]], size: int) -> StoredArray:
    """Read a .npy header; ``size`` is that of header and values together, in bytes."""
    try:
        with opened() as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            version = npy.read_magic(file)
            if version not in _HEADERS:
                raise ValueError(f"version {version} of the format is for structured arrays")
            shape, fortran, dtype = _HEADERS[version](file)
            start = file.tell()
    except Exception as error:  # whatever the decompressors and NumPy's parser raise
        raise ValueError(f"{where} must be a plain array: {reason(error)}") from error
    if dtype.hasobject:
        raise ValueError(
            f"{where} must be a plain array, it holds pickled Python objects, which are not "
            "loaded; save numbers"
        )
    needed = prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or needed != size - start:
        raise ValueError(
            f"{where} is damaged or truncated: its header says {shape} {dtype}, {needed} bytes, "
            f"and {size - start} are stored"
        )

    def values() -> NDArray[Any]:
        array = np.empty(shape[::-1] if fortran else shape, dtype)
        with opened() as file:
            file.read(start)
            _fill(array.reshape(-1).view(np.uint8).data, file)
        return array.transpose() if fortran else array

    return StoredArray(where, dtype, shape, values)


def _fill(buffer: memoryview, file: IO[bytes]) -> None:
    filled = 0
    while filled < len(buffer):
        part = file.read(min(_CHUNK, len(buffer) - filled))
        if not part:
            raise EOFError(f"{filled} of {len(buffer)} bytes")
        buffer[filled : filled + len(part)] = part
        filled += len(part)
    file.read(1)  # a zip member's checksum is compared at its end


def _text(delimiter: str | None, path: Path) -> dict[str, Opener]:
    try:
        with path.open(encoding="utf-8-sig") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array = np.loadtxt(file, delimiter=delimiter, ndmin=1)
    except Exception as error:  # UnicodeDecodeError, and what NumPy's parser raises
        raise ValueError(f"{path} must hold numbers: {reason(error)}") from error
    return {"": lambda: StoredArray(str(path), array.dtype, array.shape, lambda: array)}


def _torch_file(path: Path) -> dict[str, Opener]:
    """Read a dict of arrays as torch.save writes it, without code that pickles can name."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                size = sum(member.file_size for member in archive.infolist())
            if size > 2 * LARGEST_LABEL_FILE:
                raise ValueError(f"it unpacks to {size} bytes")
        with _numpy_allowed():
            content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        arrays = {str(name): np.asarray(value) for name, value in content.items()}
    except Exception as error:  # UnpicklingError, RuntimeError, and what damaged files raise
        raise ValueError(
            f"{path} must be a dict of arrays written by torch.save: {reason(error)}"
        ) from error

    def stored(name: str, array: NDArray[Any]) -> StoredArray:
        return StoredArray(f"{path}: {name}", array.dtype, array.shape, lambda: array)

    return {name: partial(stored, name, array) for name, array in arrays.items()}


@contextmanager
def _numpy_allowed() -> Iterator[None]:
    """Let torch.load(weights_only=True) build plain arrays of numbers, and nothing else."""
    numbers = {type(np.dtype(code)) for code in "?bBhHiIlLqQfd"}
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(
        [np.ndarray, np.dtype, *numbers, *map(_reconstruct_of, ("numpy.core", "numpy._core"))]
    )
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _reconstruct_of(package: str) -> Callable[..., NDArray[Any]]:
    """Return NumPy's function that pickles name, under the name it has in NumPy 1 or 2."""

    def _reconstruct(kind: type, shape: tuple[int, ...], code: bytes) -> NDArray[Any]:
        return np.ndarray((0,), np.uint8)  # shape, type and values come with its state

    _reconstruct.__module__ = f"{package}.multiarray"
    _reconstruct.__qualname__ = "_reconstruct"
    return _reconstruct


_HEADERS: dict[tuple[int, int], Callable[[Any], Any]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}
_READERS: dict[str, Callable[[Path], dict[str, Opener]]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".csv": partial(_text, ","),
    ".txt": partial(_text, None),
    ".pt": _torch_file,
}
