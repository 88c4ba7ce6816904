"""The trivial process of the engine's benchmark: it writes one small file."""

from pathlib import Path

from edgekiln.process import Json, serve


def write(request: Json) -> Json:
    Path(request["path"]).write_text(request["text"], encoding="utf-8")
    return {}


if __name__ == "__main__":
    serve({"write": write})
