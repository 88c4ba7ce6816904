"""ONNX Runtime's execution providers: what differs in the graph and the settings of an artifact made for each.

The facts are those of onnxruntime-genai 0.18: its model builder's activation types, accuracy levels and provider
options, and the kernels that ONNX Runtime 1.31 registers. An artifact is one for a provider when every operator that
touches a weight has a kernel there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

#: MatMulNBits' `accuracy_level`: 4 lets a kernel quantize its activations to int8 per group, 0 leaves it the choice.
_INT8_ACTIVATIONS: Final = 4


@dataclass(frozen=True)
class OnnxProvider:
    """What an artifact for one execution provider is like.

    Attributes:
        meaning: One line for the user.
        genai_name: Its key in genai_config.json's `provider_options`; None for the CPU, which has none.
        mobius_name: Its name where the float graph is built.
        activations: Type of activations, KV cache, norms, biases, scales and logits.
        accuracy_level: Of MatMulNBits.
        rotates_in_attention: GroupQueryAttention applies the rotary embedding and takes query, key and value packed;
            otherwise both are done before it, from position ids that the runtime feeds.
        options: Provider options.
        lacks: Precisions without a kernel, each with the way out.
        looks_up_codes: GatherBlockQuantized has a kernel; otherwise embeddings stay float16.
        has_experts: MoE and QMoE have kernels that were run; their layouts differ between providers.
    """

    meaning: str
    genai_name: str | None
    mobius_name: str
    activations: Literal["float32", "float16"] = "float16"
    accuracy_level: int = 0
    rotates_in_attention: bool = True
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    lacks: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    looks_up_codes: bool = True
    has_experts: bool = False


PROVIDERS: Final[Mapping[str, OnnxProvider]] = MappingProxyType(
    {
        "cpu": OnnxProvider(
            "float32 activations, int8 inside MatMulNBits",
            None,
            "cpu",
            "float32",
            accuracy_level=_INT8_ACTIVATIONS,
            has_experts=True,
        ),
        "cuda": OnnxProvider("float16 activations, on NVIDIA GPUs", "cuda", "cuda"),
        "webgpu": OnnxProvider(
            "float16 activations, int8 inside MatMulNBits, on any GPU through WebGPU, natively or in a browser",
            "webgpu",
            "webgpu",
            accuracy_level=_INT8_ACTIVATIONS,
        ),
        "dml": OnnxProvider(
            "float16 activations and embeddings, on Windows GPUs through DirectML, which gets no new operators",
            "dml",
            "dml",
            rotates_in_attention=False,
            options=MappingProxyType({"enable_graph_capture": "0"}),  # capture needs every node on the GPU
            lacks=MappingProxyType(
                {
                    "int8": "no 8-bit artifact was ever tried on DirectML; use int4 or fp16, or the webgpu provider",
                    "nf4": "DirectML has no MatMulBnb4; use int4",
                }
            ),
            looks_up_codes=False,
        ),
    }
)

#: Providers that are known and not served, with the reason and the way out.
REFUSED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "qnn": "Qualcomm's NPU runs static graphs that its SDK compiled to a QNN context binary; build with that "
        "SDK, or use a target on the cpu or webgpu, or gguf on opencl (Adreno)",
        "openvino": "OpenVINO runs language models as OpenVINO IR inside an EPContext node, which Intel's tools make; "
        "convert with optimum-intel, or use a target on the cpu or webgpu",
        "vitisai": "AMD's NPU runs what Quark quantized and the Vitis AI compiler compiled; build with the Ryzen AI "
        "software, or use a target on the cpu, webgpu or dml",
        "ryzenai": "AMD's NPU runs what Quark quantized and the Vitis AI compiler compiled; build with the Ryzen AI "
        "software, or use a target on the cpu, webgpu or dml",
        "nvtensorrtrtx": "TensorRT-RTX reads 4-bit weights through DequantizeLinear and has no MatMulNBits; use cuda",
        "tensorrt": "TensorRT knows neither GroupQueryAttention nor MatMulNBits; use cuda",
        "coreml": "ONNX Runtime GenAI cannot be told to use Core ML, which knows neither GroupQueryAttention nor "
        "MatMulNBits; use a target on the cpu or webgpu, or gguf on metal",
        "migraphx": "no artifact was ever tried on it; use webgpu, or gguf on hip",
        "amdgpu": "no artifact was ever tried on it; use webgpu, or gguf on hip",
        "rocm": "ONNX Runtime removed its ROCm provider; use webgpu, or gguf on hip",
        "nnapi": "Android's NNAPI knows neither GroupQueryAttention nor MatMulNBits, and is deprecated; use the cpu",
        "xnnpack": "XNNPACK knows neither GroupQueryAttention nor MatMulNBits; use the cpu, whose kernels are as fast",
        "wasm": "a browser without WebGPU computes on its CPU; use a target on the cpu",
        "js": "ONNX Runtime replaced its JavaScript provider; use webgpu",
        "webnn": "no artifact was ever tried on it; use webgpu",
    }
)
