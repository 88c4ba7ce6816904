import json

import pytest

from checkpoints import make_checkpoint
from edgekiln.checkpoint import EMBEDDED, open_checkpoint
from edgekiln.device import Device
from edgekiln.errors import UnsupportedError
from edgekiln.exporters.foundry_local import INFERENCE_MODEL, FoundryLocal, model_name
from edgekiln.exporters.onnx import Onnx
from edgekiln.quantizers import quantize
from edgekiln.scheme import Scheme


def test_the_directory_is_the_onnx_one_with_the_cache_contract(tmp_path):
    checkpoint = open_checkpoint(EMBEDDED)
    for name, exporter in (("foundry", FoundryLocal()), ("onnx", Onnx())):
        (tmp_path / name).mkdir()
        exporter.write(checkpoint, exporter.plan(checkpoint, Scheme("int4")), tmp_path / name, quantize)
    names = {path.name for path in (tmp_path / "foundry").iterdir()}
    assert names == {path.name for path in (tmp_path / "onnx").iterdir()} | {INFERENCE_MODEL}
    for path in (tmp_path / "onnx").iterdir():
        assert path.read_bytes() == (tmp_path / "foundry" / path.name).read_bytes()
    document = json.loads((tmp_path / "foundry" / INFERENCE_MODEL).read_text())
    assert document["Name"] == "qwen3-5.8m-int4-generic-cpu"
    assert all("{Content}" in turn for turn in document["PromptTemplate"].values())


def test_the_name_holds_no_character_that_a_folder_cannot_have():
    name = model_name(open_checkpoint(EMBEDDED), Scheme("int4"))
    assert name == name.lower()
    assert not set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789.-")


def test_a_checkpoint_without_a_chat_template_is_refused(tmp_path):
    make_checkpoint(tmp_path / "c", "qwen3", hidden_size=64)
    (tmp_path / "c" / "chat_template.jinja").unlink()
    with pytest.raises(UnsupportedError, match="no ChatML chat template"):
        FoundryLocal().plan(open_checkpoint(str(tmp_path / "c")), Scheme("int4"))


@pytest.mark.parametrize(("provider", "ending"), [("cuda", "-cuda-gpu"), ("webgpu", "-generic-gpu")])
def test_a_graphics_card_is_in_the_name_and_the_provider_options(tmp_path, provider, ending):
    checkpoint, exporter = open_checkpoint(EMBEDDED), FoundryLocal()
    exporter.write(checkpoint, exporter.plan(checkpoint, Scheme("int4"), Device(provider)), tmp_path, quantize)
    assert json.loads((tmp_path / INFERENCE_MODEL).read_text())["Name"].endswith(f"-int4{ending}")
    session = json.loads((tmp_path / "genai_config.json").read_text())["model"]["decoder"]["session_options"]
    assert session["provider_options"] == [{provider: {}}]


def test_directml_is_refused_though_onnx_serves_it():
    assert Onnx().unsupported(Scheme("int4"), Device("dml")) is None
    with pytest.raises(UnsupportedError, match="built without DirectML; use webgpu"):
        FoundryLocal().plan(open_checkpoint(EMBEDDED), Scheme("int4"), Device("dml"))
