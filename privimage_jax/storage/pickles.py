"""Pickles from strangers: a pickle can name any function to be called, so here it may name a few, and stand-ins are.

A reader says which names its files hold, and gives a stand-in for each that only notes what it is asked for; so no code
of a file runs. What a pickle can do beside calling is limited to the building of plain values, in memory that the file
itself fills.
"""

import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any

from privimage_jax.storage import reading

_OPERATIONS = """
PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT STRING BINSTRING
SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 TUPLE
EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS GLOBAL STACK_GLOBAL
REDUCE BUILD DUP GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE BINPERSID
""".split()  # noqa: SIM905


class _Dispatch(dict):
    def __missing__(self, code: int) -> Any:
        raise reading.Unreadable("holds an operation that files of arrays do not need")


class Unpickler(pickle._Unpickler):  # the one in C sets memory aside for whatever memo index a file names
    """Reads dicts, lists, tuples, numbers, texts and bytes, and calls stand-ins; refuses everything else.

    Args:
      file: in memory; several pickles may follow each other.
      known: what a file may name, as "module.name", and its stand-in. Make them anew for every file, which could
        attach things to them.
      encoding: of the texts of Python 2; "bytes" leaves them as they are.
    """

    def __init__(self, file: io.BytesIO, known: Mapping[str, Any], encoding: str = "ASCII"):
        super().__init__(file, encoding=encoding)
        self._known, self.size = known, file.getbuffer().nbytes

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for what the file names."""
        if f"{module}.{name}" not in self._known:
            raise reading.Unreadable(f"holds {f'{module}.{name}'[:80]!r}, which is no part of an array")
        return self._known[f"{module}.{name}"]

    def persistent_load(self, identity: Any) -> Any:
        """What a file keeps outside of the pickle; none does, unless a reader knows better."""
        raise reading.Unreadable("refers to things outside of it")


def _load_bytearray8(self: Any) -> None:
    """As Python does it, but in memory that the file fills."""
    length = int.from_bytes(self.read(8), "little")
    if length > self.size:
        raise reading.Unreadable("is cut short")
    self.append(bytearray(self.read(length)))


def _shallow(load: Callable) -> Callable:
    """Tuples of tuples of tuples are in no file of arrays, and hashing them could take for ever."""

    def checked(self: Any) -> None:
        load(self)
        inner = [value for value in self.stack[-1] if isinstance(value, tuple)]
        if any(isinstance(value, tuple) for values in inner for value in values):
            raise reading.Unreadable("nests too deeply")

    return checked


def _named(load: Callable, keys: slice) -> Callable:
    """Keys are texts: of numbers there are many with the same hash, with which a dict could take for ever."""

    def checked(self: Any) -> None:
        if not all(isinstance(key, str | bytes) for key in self.stack[keys]):
            raise reading.Unreadable("holds a dict whose keys are not names")
        load(self)

    return checked


_LOADS: dict[str, Callable] = {name: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _OPERATIONS}
_LOADS |= {name: _shallow(_LOADS[name]) for name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")}
_LOADS |= {name: _named(_LOADS[name], slice(0, None, 2)) for name in ("DICT", "SETITEMS")}
_LOADS["SETITEM"] = _named(_LOADS["SETITEM"], slice(-2, -1))
_LOADS["BYTEARRAY8"] = _load_bytearray8
Unpickler.dispatch = _Dispatch({getattr(pickle, name)[0]: load for name, load in _LOADS.items()})
