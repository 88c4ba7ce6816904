"""What an artifact's manifest says of its plan: for the manifest that is written, and for predicting its size."""

from __future__ import annotations

from edgekiln.artifact import DeviceEntry, SchemeEntry, TensorEntry
from edgekiln.device import Device
from edgekiln.exporters.base import ExportPlan
from edgekiln.scheme import Scheme


def scheme_entry(scheme: Scheme, requested: str) -> SchemeEntry:
    """Describe a scheme, and the precision that a user named before a target's mapping."""
    return SchemeEntry(requested=requested, precision=scheme.precision, **scheme.options)


def device_entry(device: Device) -> DeviceEntry:
    """Describe where an artifact is to run."""
    return DeviceEntry(execution_provider=device.execution_provider, context_length=device.context_length)


def tensor_entries(plan: ExportPlan) -> tuple[TensorEntry, ...]:
    """Describe every tensor."""
    return tuple(
        TensorEntry(
            name=tensor.name,
            sources=tensor.sources,
            shape=tensor.shape,
            type=tensor.storage_name,
            nbytes=tensor.nbytes,
            note=tensor.note,
        )
        for tensor in plan.tensors
    )
