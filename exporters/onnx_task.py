"""Making model.onnx, in a process of its own where that saves time.

The libraries that build the graph need seconds of one core to load and to run, all in the interpreter, so that another
thread of the same process gets no turn meanwhile: beside it the weights would wait for the graph. Started as
`python -m edgekiln.exporters.onnx_task` by `edgekiln.process.run_task`.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgekiln.checkpoint import Checkpoint, open_resolved
from edgekiln.device import Device
from edgekiln.errors import StepError
from edgekiln.exporters.base import ExportPlan
from edgekiln.exporters.onnx_layout import Placed, layout, place
from edgekiln.exporters.onnx_providers import PROVIDERS
from edgekiln.installed import package_version
from edgekiln.process import Json, run_task, serve, showing_log
from edgekiln.scheme import Scheme

if TYPE_CHECKING:
    import onnx

MODEL_FILE: Final = "model.onnx"
#: Weights from which on there is as much to do for another core as loading the libraries takes.
APART_WEIGHTS: Final = 1 << 26
_PIECE_BYTES: Final = 16 << 20


@dataclass(frozen=True)
class Tables:
    """The tensors that are computed, not read from the checkpoint.

    Attributes:
        folder: Holds the bytes of each, as they lie in the artifact, in a file of its number.
        names: Of the tensors.
    """

    folder: Path
    names: tuple[str, ...]

    def pieces(self, name: str) -> Iterator[bytes]:
        """Yield the bytes of a tensor."""
        with (self.folder / str(self.names.index(name))).open("rb", buffering=0) as file:
            while piece := file.read(_PIECE_BYTES):
                yield piece


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a folder for the tables, which goes with what is in it."""
    with tempfile.TemporaryDirectory(prefix="edgekiln-graph-") as name:
        yield Path(name)


def make_graph(
    checkpoint: Checkpoint, plan: ExportPlan, placed: Mapping[str, Placed], directory: Path, scratch: Path
) -> Tables:
    """Write model.onnx into a directory, here or in a process of its own; the bytes are the same.

    Args:
        checkpoint: The source.
        plan: What `Onnx.plan` decided.
        placed: Where its tensors lie.
        directory: Of the artifact.
        scratch: See `scratch_folder`.

    Raises:
        StepError: The graph cannot be made.
    """
    if checkpoint.weight_count < APART_WEIGHTS:
        return write_graph(checkpoint, plan, placed, directory, scratch)
    request = {
        "checkpoint": str(checkpoint.directory.absolute()),
        "source": checkpoint.source,
        "scheme": dataclasses.asdict(plan.scheme),
        "device": dataclasses.asdict(plan.device),
        "directory": str(directory.absolute()),
        "scratch": str(scratch),
        "places": _fingerprint(placed),
    }
    log = scratch / "log"
    with showing_log(log):
        answer = run_task(__name__, "graph", request, log=log)
    return Tables(scratch, tuple(answer["names"]))


def write_graph(
    checkpoint: Checkpoint, plan: ExportPlan, placed: Mapping[str, Placed], directory: Path, scratch: Path
) -> Tables:
    """Write model.onnx into a directory, in this process. See `make_graph`."""
    import numpy as np
    import onnx_ir as ir

    from edgekiln.exporters.onnx_graph import build_float_graph
    from edgekiln.exporters.onnx_portable import make_portable
    from edgekiln.exporters.onnx_rewrite import Rewriter

    provider = PROVIDERS[plan.device.execution_provider]
    model = build_float_graph(checkpoint.config, provider)
    if provider.genai_name is not None:
        make_portable(model)
    computed = Rewriter(model.graph, placed, provider, plan.scheme.accuracy_level).run()
    model.producer_name, model.producer_version = "edgekiln", package_version("edgekiln")
    proto = ir.serde.serialize_model(model)
    _drop_notes(proto)
    (directory / MODEL_FILE).write_bytes(proto.SerializeToString(deterministic=True))
    for number, (name, values) in enumerate(computed.items()):
        dtype = np.dtype(placed[name].parts["values"].dtype).newbyteorder("<")
        values.astype(dtype, copy=False).tofile(scratch / str(number))
    return Tables(scratch, tuple(computed))


def _drop_notes(model: onnx.ModelProto) -> None:
    """Remove what no runtime reads, a third of the file.

    That is which module and rule of mobius a node comes from (its name says where it belongs), and the shapes of
    initializers, which have their own.
    """
    graph = model.graph
    for item in (*graph.node, *graph.input, *graph.output, *graph.value_info):
        item.ClearField("metadata_props")
    stored = {initializer.name for initializer in graph.initializer}
    others = [value for value in graph.value_info if value.name not in stored]
    graph.ClearField("value_info")
    graph.value_info.extend(others)


def _fingerprint(placed: Mapping[str, Placed]) -> str:
    return layout(placed).fingerprint("")


def _graph(request: Json) -> Json:
    """Plan the artifact anew and write its graph. Request: what `make_graph` makes."""
    from edgekiln.exporters.onnx import Onnx

    # The identity, which nothing here asks for, is of no use to a graph.
    checkpoint = open_resolved(request["source"], Path(request["checkpoint"]), None, with_text=False, identity="")
    plan = Onnx().plan(checkpoint, Scheme.parse(request["scheme"]), Device(**request["device"]))
    placed = place(plan.tensors, most=plan.scheme.split_max_size)
    if _fingerprint(placed) != request["places"]:
        raise StepError(
            f"{checkpoint.directory} changed while it was exported; export it again when nothing writes to it"
        )
    tables = write_graph(checkpoint, plan, placed, Path(request["directory"]), Path(request["scratch"]))
    return {"names": tables.names}


if __name__ == "__main__":
    serve({"graph": _graph})
