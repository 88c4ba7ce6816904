"""ggml's own C functions, from the `libggml-base` that llama-cpp-python installs.

They define ggml's block types, for what we write and for what others wrote. The library is loaded by ctypes alone:
importing `llama_cpp` would load (and let speak) the whole of llama.cpp.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from pathlib import Path
from typing import Final

from edgekiln.errors import MachineError

#: What the library is called on Linux, macOS and Windows.
LIBRARY_NAMES: Final = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll", "libggml-base.dll")
_PACKAGE: Final = "llama_cpp"
DISTRIBUTION: Final = "llama-cpp-python"


def find_library() -> Path:
    """Return the path of the installed `libggml-base`, without importing `llama_cpp`.

    Raises:
        MachineError: llama-cpp-python is not installed, or without its libraries.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    for location in (spec.submodule_search_locations or []) if spec else []:
        for name in LIBRARY_NAMES:
            path = Path(location) / "lib" / name
            if path.exists():
                return path
    raise MachineError(
        f"{' / '.join(LIBRARY_NAMES)} was not found in the {_PACKAGE} package; "
        f"install it with 'pip install {DISTRIBUTION}'"
    )


@functools.cache
def load_library() -> ctypes.CDLL:
    """Load the library once; ctypes releases the GIL during its calls.

    Raises:
        MachineError: It is not installed, or cannot be loaded.
    """
    path = find_library()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise MachineError(f"cannot load {path}: {error}; reinstall {DISTRIBUTION}") from None
    kind, count = ctypes.c_int, ctypes.c_int64
    for name, result, arguments in (
        ("ggml_quantize_init", None, [kind]),
        ("ggml_quantize_requires_imatrix", ctypes.c_bool, [kind]),
        ("ggml_type_name", ctypes.c_char_p, [kind]),
        ("ggml_blck_size", count, [kind]),
        ("ggml_row_size", ctypes.c_size_t, [kind, count]),
        ("ggml_validate_row_data", ctypes.c_bool, [kind, ctypes.c_void_p, ctypes.c_size_t]),
        (
            "ggml_quantize_chunk",
            ctypes.c_size_t,
            [kind, ctypes.c_void_p, ctypes.c_void_p, count, count, count, ctypes.c_void_p],
        ),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
