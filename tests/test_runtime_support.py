"""The table of what releases load: its laws, and the rows of the installed releases, verified by running them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from edgekiln.errors import UsageError
from edgekiln.process import QUIET_ENVIRONMENT
from edgekiln.validators.runtime_support import Fact, Source, parse_support, runtime_support

_HEAD = """
schema: edgekiln.runtime-support/1
sources: {here: {title: a test, url: "https://example.org/", says: nothing}}
runtimes:
  one:
    title: One
    reads: gguf
    releases: [1.0, 1.1, 1.2, 1.10]
    lists:
      - what: architecture
        complete: true
        source: here
        rows:
"""


def _run(script: str, *arguments: object) -> Any:
    """Run a script in a process of its own, since native libraries may end it, and return what it prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | QUIET_ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def _taken(package: str, what: str) -> set[str]:
    """Return the names that the installed release takes by the table; it must have a row."""
    support, installed = runtime_support()[package], Version(version(package))
    assert installed in support.releases, f"{package} {installed} is installed, but not in the table: look at it"
    listed = support.lists[what]  # type: ignore[index] # a literal of the test
    return {name for name in listed.facts if listed.verdict(name, installed) == "yes"}


# --- laws of the table --------------------------------------------------------------------------------------------


def _parse(path: Path, rows: str) -> Any:
    path.write_text(_HEAD + rows)
    return parse_support(path)["one"].lists["architecture"]


def test_between_the_last_refusal_and_the_first_success_nothing_is_said(tmp_path: Path) -> None:
    listed = _parse(tmp_path / "t.yaml", "          - {since: 1.2, not_in: 1.0, names: [a]}\n")
    said = [listed.verdict("a", Version(text)) for text in ("0.9", "1.0", "1.1", "1.2", "1.10", "2")]
    assert said == ["no", "no", "unknown", "yes", "yes", "yes"]


def test_what_was_dropped_is_refused_from_then_on(tmp_path: Path) -> None:
    listed = _parse(tmp_path / "t.yaml", "          - {since: 1.0, gone_in: 1.2, names: [a]}\n")
    said = [listed.verdict("a", Version(text)) for text in ("0.9", "1.0", "1.1", "1.2", "1.10")]
    assert said == ["unknown", "yes", "yes", "no", "no"]


def test_a_complete_list_refuses_other_names_in_the_releases_looked_at_alone(tmp_path: Path) -> None:
    listed = _parse(tmp_path / "t.yaml", "          - {since: 1.0, names: [a]}\n")
    assert [listed.verdict("b", Version(text)) for text in ("0.9", "1.0", "1.10", "1.11")] == [
        "unknown",
        "no",
        "no",
        "unknown",
    ]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("          - {names: [a]}\n", "neither since nor not_in"),
        ("          - {since: 1.0, not_in: 1.1, names: [a]}\n", "swap them"),
        ("          - {since: 1.0, names: [a, a]}\n", "twice"),
        ("          - {since: 1.0, names: [a], source: her}\n", "'here'"),
        ("          - {since: one, names: [a]}\n", "no version"),
        ("          - {since: 1.0, names: [a], sinc: 1}\n", "sinc"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(tmp_path: Path, rows: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        _parse(tmp_path / "t.yaml", rows)


def test_every_row_of_the_shipped_table_has_a_source() -> None:
    facts = [
        fact
        for support in runtime_support().values()
        for listed in support.lists.values()
        for fact in listed.facts.values()
    ]
    assert len(facts) > 1000
    assert all(isinstance(fact, Fact) and isinstance(fact.source, Source) and fact.source.says for fact in facts)


def test_releases_that_rows_name_are_releases_of_the_runtime() -> None:
    for support in runtime_support().values():
        if not support.releases:
            continue
        for listed in support.lists.values():
            for name, fact in listed.facts.items():
                named = {fact.since, fact.not_in, fact.gone_in} - {None}
                if fact.source is listed.source:
                    assert named <= set(support.releases), (support.name, name)


# --- the installed releases, run ----------------------------------------------------------------------------------

#: Has ggml read a file of one tensor of each type number: it names those that it takes.
_GGML = """
import ctypes, json, pathlib, struct, sys, llama_cpp
library = ctypes.CDLL(str(pathlib.Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))

class Parameters(ctypes.Structure):
    _fields_ = [("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p)]

library.gguf_init_from_file.argtypes = [ctypes.c_char_p, Parameters]
library.gguf_init_from_file.restype = ctypes.c_void_p
library.gguf_free.argtypes = [ctypes.c_void_p]
library.ggml_type_name.restype = ctypes.c_char_p
path = pathlib.Path(sys.argv[1]) / "one.gguf"
names = []
for kind in range(64):
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 1) + b"t"
    header += struct.pack("<IQIQ", 1, 1024, kind, 0)
    path.write_bytes(header.ljust(-(-len(header) // 32) * 32, b"\\0") + bytes(8192))
    context = library.gguf_init_from_file(str(path).encode(), Parameters(True, None))
    if context:
        names.append(library.ggml_type_name(kind).decode())
        library.gguf_free(context)
print(json.dumps(names))
"""

#: Loads one vocabulary without tensors for each architecture and pre-tokenizer named, and says which were refused.
_LLAMA = """
import ctypes, json, pathlib, sys, gguf, llama_cpp
folder, request = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
said = []
callback = llama_cpp.llama_log_callback(lambda level, text, data: said.append(text.decode(errors="replace")))
llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()

def attempt(architecture, pre, version=3):
    path = folder / "vocabulary.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    tokens = [bytes([65 + i]) for i in range(26)] + [b"\\xc4\\x8a"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(["A B"])
    writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()
    data = bytearray(path.read_bytes()); data[4:8] = version.to_bytes(4, "little"); path.write_bytes(data)
    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    said.clear()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    if model:
        llama_cpp.llama_model_free(model)
    return bool(model), "".join(said)

answer = {"architecture": {}, "tokenizer": {}, "gguf_version": {}}
for name in request["architecture"]:
    loaded, text = attempt(name, "qwen2")
    answer["architecture"][name] = loaded or "unknown model architecture" not in text
for name in request["tokenizer"]:
    loaded, text = attempt("qwen2", name)
    answer["tokenizer"][name] = loaded or "unknown pre-tokenizer type" not in text
for name in request["gguf_version"]:
    answer["gguf_version"][name] = attempt("qwen2", "qwen2", int(name))[0]
print(json.dumps(answer))
"""


def test_the_installed_ggml_reads_the_tensor_types_of_its_row_and_no_others(tmp_path: Path) -> None:
    assert {name.upper() for name in _run(_GGML, tmp_path)} == _taken("llama-cpp-python", "tensor_type")


def test_the_installed_llama_cpp_takes_its_rows_and_refuses_other_names(tmp_path: Path) -> None:
    unknown = {"architecture": "nonsense", "tokenizer": "nonsense", "gguf_version": "1"}
    taken = {what: _taken("llama-cpp-python", what) for what in unknown}
    dropped = {"architecture": set(runtime_support()["llama-cpp-python"].lists["architecture"].facts)}
    asked = {what: sorted(taken[what] | dropped.get(what, set()) | {name}) for what, name in unknown.items()}
    answer = _run(_LLAMA, tmp_path, json.dumps(asked))
    for what in unknown:
        assert {name for name, loads in answer[what].items() if loads} == taken[what], what


_ORT_LISTS = """
import json
from onnxruntime.capi import onnxruntime_pybind11_state as state
schemas = {s.name: s for s in state.get_all_operator_schema() if s.domain == "com.microsoft"}
adopted = {s.name for s in state.get_all_operator_schema() if not s.domain} & {"SimplifiedLayerNormalization"}
kernels = {(k.domain, k.op_name) for k in state.get_all_opkernel_def() if k.provider == "CPUExecutionProvider"}
print(json.dumps({
    "operator": sorted({*schemas, *adopted}),
    "operator_on_cpu": sorted({n for n in schemas if ("com.microsoft", n) in kernels}
                              | {n for n in adopted if ("", n) in kernels}),
    "operator_attribute": sorted(f"{n}.{a}" for n, s in schemas.items() for a in s.attributes),
    "inputs": {n: len(list(s.inputs)) for n, s in schemas.items()},
}))
"""

_ORT_LOADS = """
import json, sys
import numpy as np, onnx, onnxruntime
from onnx import TensorProto as T, helper as h
options = onnxruntime.SessionOptions(); options.log_severity_level = 4

def loads(node, inputs, outputs, initializers, opset, ir, feed):
    graph = h.make_graph([node], "g", inputs, outputs, initializers)
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", opset), h.make_opsetid("com.microsoft", 1)])
    model.ir_version = ir
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        session.run(None, feed)
    except Exception as error:
        return False
    return True

def relu(opset, ir):
    value = lambda name: h.make_tensor_value_info(name, T.FLOAT, [1])
    return loads(h.make_node("Relu", ["x"], ["y"]), [value("x")], [value("y")], [], opset, ir,
                 {"x": np.zeros(1, np.float32)})

def raw(name, kind, shape, size):
    tensor = T(name=name, data_type=kind, dims=shape); tensor.raw_data = bytes(size); return tensor

def form(name):
    operator, *pairs = name.split(".")
    values = {k: int(v) for k, v in (pair.split("=") for pair in pairs)}
    rows, columns, block = 32, 64, 32
    codes = raw("B", T.UINT8, [rows, 2, block * values["bits"] // 8], rows * columns * values["bits"] // 8)
    if operator == "MatMulNBits":
        scales = raw("s", T.FLOAT, [rows * 2], rows * 8)
        node = h.make_node(operator, ["x", "B", "s"], ["y"], domain="com.microsoft", K=columns, N=rows,
                           block_size=block, **values)
        return loads(node, [h.make_tensor_value_info("x", T.FLOAT, [1, columns])],
                     [h.make_tensor_value_info("y", T.FLOAT, [1, rows])], [codes, scales], 21, 10,
                     {"x": np.zeros((1, columns), np.float32)})
    codes = raw("B", T.UINT8, [rows, columns * values["bits"] // 8], rows * columns * values["bits"] // 8)
    scales = raw("s", T.FLOAT, [rows, 2], rows * 8)
    node = h.make_node(operator, ["B", "x", "s"], ["y"], domain="com.microsoft", block_size=block, gather_axis=0,
                       quantize_axis=1, **values)
    return loads(node, [h.make_tensor_value_info("x", T.INT64, [1])],
                 [h.make_tensor_value_info("y", T.FLOAT, [1, columns])], [codes, scales], 21, 10,
                 {"x": np.zeros(1, np.int64)})

request = json.loads(sys.argv[1])
print(json.dumps({
    "opset": {name: relu(int(name), 8) for name in request["opset"]},
    "ir_version": {name: relu(15, int(name)) for name in request["ir_version"]},
    "operator_form": {name: form(name) for name in request["operator_form"]},
}))
"""


def test_the_installed_onnxruntime_lists_the_operators_of_its_rows_and_no_others() -> None:
    lists = _run(_ORT_LISTS)
    for what in ("operator", "operator_on_cpu", "operator_attribute"):
        assert set(lists[what]) == _taken("onnxruntime", what), what
    sizes: dict[str, int] = {}
    for entry in _taken("onnxruntime", "operator_inputs"):
        operator, _, size = entry.rpartition(".")
        sizes[operator] = max(int(size), sizes.get(operator, 0))
    assert len(sizes) > 100
    assert sizes == {operator: lists["inputs"][operator] for operator in sizes}


def test_the_installed_onnxruntime_loads_up_to_its_limits_and_no_further() -> None:
    asked = {what: _taken("onnxruntime", what) for what in ("opset", "ir_version", "operator_form")}
    beyond = {what: {str(max(map(int, asked[what])) + 1)} for what in ("opset", "ir_version")}
    beyond["operator_form"] = {"MatMulNBits.bits=1"}
    # Relu is no operator of the oldest opsets as it is written here; those above 12 tell the limit.
    asked["opset"] = {name for name in asked["opset"] if int(name) >= 13}
    request = {what: sorted(asked[what] | beyond[what]) for what in asked}
    answer = _run(_ORT_LOADS, json.dumps(request))
    for what, names in asked.items():
        assert {name for name, loads in answer[what].items() if loads} == names, what


#: Asks for each model type and key; a type is known where the model fails later, on its empty graph.
_GENAI = """
import copy, json, os, pathlib, sys
import onnxruntime_genai as og
folder, request = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
(folder / "model.onnx").write_bytes(b"")
base = {
    "model": {"context_length": 32, "type": "llama", "vocab_size": 64, "decoder": {
        "session_options": {"provider_options": []}, "filename": "model.onnx", "head_size": 8, "hidden_size": 16,
        "inputs": {}, "outputs": {}, "num_attention_heads": 2, "num_hidden_layers": 1, "num_key_value_heads": 1}},
    "search": {"max_length": 16}}

def said(load, config):
    (folder / "genai_config.json").write_text(json.dumps(config))
    try:
        load(str(folder))
    except Exception as error:
        return str(error)
    return ""

def key(place):
    *parents, last = place.split(".")
    for value in (1, "x", True, {}, []):
        config = copy.deepcopy(base); spot = config
        for parent in parents:
            spot = spot.setdefault(parent, {})
        spot[last] = value
        text = said(og.Config, config)
        if not ("nknown" in text and f'"{last}"' in text):
            return True
    return False

def kind(name):
    config = copy.deepcopy(base); config["model"]["type"] = name
    return "nsupported model_type" not in said(og.Model, config)

sys.stderr.flush()
print(json.dumps({"model_type": {n: kind(n) for n in request["model_type"]},
                  "config_key": {n: key(n) for n in request["config_key"]}}))
"""


def test_the_installed_genai_takes_its_rows_and_refuses_other_names(tmp_path: Path) -> None:
    lists = runtime_support()["onnxruntime-genai"].lists
    asked = {
        "model_type": {*lists["model_type"].facts, "nonsense"},
        "config_key": {
            *lists["config_key"].facts,
            "model.nonsense",
            "search.nonsense",
            "model.decoder.inputs.nonsense",
        },
    }
    answer = _run(_GENAI, tmp_path, json.dumps({what: sorted(names) for what, names in asked.items()}))
    for what in asked:
        assert {name for name, known in answer[what].items() if known} == _taken("onnxruntime-genai", what), what


def _pins(package: str) -> dict[str, str]:
    parsed = [Requirement(text) for text in requires(package) or ()]
    wanted = [entry for entry in parsed if entry.name.startswith("onnxruntime") and entry.marker is None]
    return {entry.name: next(iter(entry.specifier)).version for entry in wanted}


@pytest.mark.parametrize("package", ["onnxruntime-genai", "foundry-local-sdk"])
def test_what_the_installed_packages_ask_for_is_in_the_table(package: str) -> None:
    need = runtime_support()[package].needed(Version(version(package)))
    assert need is not None
    pins = _pins(package)
    assert Version(pins["onnxruntime"]) == need.onnxruntime
    if package == "foundry-local-sdk":
        assert Version(pins["onnxruntime-genai-core"]) == need.genai
