"""Which precisions of a model fit a device, as JSON, `edgekiln.fit/1`."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgekiln.pipelines.plan_document import Prediction

FIT_SCHEMA: Final = "edgekiln.fit/1"


class _Value(BaseModel):
    """A frozen part of the document; readers ignore keys they do not know."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class FitPrecision(_Value):
    """One precision on the device."""

    requested: str = Field(description="Precision as a pipeline asks for it.", examples=["int4"])
    precision: str = Field(description="Precision that the container holds.", examples=["q4_0"])
    container_type: str | None = Field(
        description="The container's own name for it; null where it cannot be made.", examples=["Q4_0"]
    )
    unsupported: str | None = Field(
        description="Why it cannot be made, or not on this device; null where it can.",
        examples=["GGUF has no NF4 type; use iq4_nl, the nearest it has"],
    )
    prediction: Prediction | None = Field(
        description="What it would be; null where it cannot be made.",
        examples=[{"artifact_bytes": 352225026, "fit": "fits"}],
    )


class FitDocument(_Value):
    """Every precision that a device could have of a model."""

    schema_id: Literal["edgekiln.fit/1"] = Field(
        default=FIT_SCHEMA, alias="schema", description="Kind and version of this document.", examples=[FIT_SCHEMA]
    )
    checkpoint: str = Field(description="The model, as it was named.", examples=["./my-fine-tune"])
    target: str = Field(description="Name of the device's profile.", examples=["raspberry-pi-5"])
    memory: int | None = Field(
        description="Bytes that a process with the model may take there; null where nothing is said.",
        examples=[6 * 2**30],
    )
    precisions: tuple[FitPrecision, ...] = Field(
        description="The largest artifact first, what cannot be made last.",
        examples=[[{"requested": "int4", "container_type": "Q4_0"}]],
    )
