"""The conservation audit: is every weight of the checkpoint in the artifact, in its place, and nothing else?

Names only propose what a tensor is; values decide. Each tensor of the artifact is dequantized a few rows at a time and
compared with the checkpoint's weights as they are stored, unrounded. What error is expected comes from rounding some of
the same rows to the same type by that type's own kernel.
"""

from __future__ import annotations

import math
import operator
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgekiln.checkpoint import Checkpoint
from edgekiln.errors import ArtifactError
from edgekiln.families import EMBEDDING, HEAD
from edgekiln.safetensors import TensorInfo, TensorReader
from edgekiln.validators.base import CheckResult, Finding, Severity
from edgekiln.validators.conservation_causes import (
    FIXES,
    Cause,
    Limits,
    Suspect,
    error_of,
    find_cause,
    scale_of,
    suspect_of,
    turned_rows,
)
from edgekiln.validators.kinds import ArtifactKind
from edgekiln.validators.precision import Precision, check_precision
from edgekiln.validators.storage import artifact_weights
from edgekiln.validators.weight_names import Claim, claims, dropped_reason, split_layer
from edgekiln.validators.weight_values import (
    CHUNK_WEIGHTS,
    Piece,
    RowSums,
    TensorError,
    compare_rows,
    even_blocks,
    relative,
)
from edgekiln.validators.weights import Weight

#: Share of the rows that a quick comparison reads.
QUICK_SAMPLE: Final = 0.05
#: Rows of each tensor that are rounded again to know the error to expect.
_PROBE_ROWS: Final = 64
#: Rows that differ most, which are looked at a second time.
_WORST_ROWS: Final = 32
#: Weights that one thread compares before it takes other ones.
_JOB_WEIGHTS: Final = 1 << 24
_WORST_TENSORS: Final = 10
#: Tensors of one shape that one which differs is compared with.
_MOST_OTHERS: Final = 400
#: Tensors that those without a known name are compared with, in all.
_MOST_CANDIDATES: Final = 200_000
#: Findings of one id that are listed one by one.
_MAX_FINDINGS: Final = 200
#: A factor that differs by less is not told from rounding.
_LEAST_SCALE: Final = 0.005
#: Cosine below which two tensors have nothing in common.
_STRANGE: Final = 0.5
#: How alike the errors of tensors of one type must be for one that differs to be told, and by how much it must.
_ALIKE, _UNLIKE, _LEAST_PEERS = 0.05, 0.12, 6


@dataclass(frozen=True)
class LayerErrors:
    """Errors of the parts of one layer; fields as in `LayerReport`."""

    layer: int | None
    relative_errors: dict[str, float]


@dataclass(frozen=True)
class Conservation:
    """What is where; fields as in `ConservationReport`."""

    exported: int
    tied: int
    fused: int
    dropped: dict[str, str]
    compared_weights: int
    relative_error: float
    snr_db: float | None
    worst: tuple[TensorError, ...]
    layers: tuple[LayerErrors, ...]


@dataclass(frozen=True)
class Audit:
    """Conservation and precision of an artifact.

    Attributes:
        conservation: None where the artifact cannot be read.
        precision: None where the artifact cannot be read.
        checks: `conservation/tensors`, `conservation/values` and `precision/types`.
    """

    conservation: Conservation | None
    precision: Precision | None
    checks: tuple[CheckResult, ...]


@dataclass(frozen=True)
class _Probe:
    """What some rows of a piece say, without the rows: a model of many experts has tens of thousands of pieces.

    Attributes:
        error: Relative error of the rows.
        limits: What the type explains of it.
        factor: The best factor between source and artifact, by that which the type's own rounding has.
        weights: How many weights were looked at.
    """

    error: float
    limits: Limits
    factor: float
    weights: int


@dataclass(frozen=True)
class _Measured:
    """A piece that was compared."""

    piece: Piece
    sums: RowSums
    probe: _Probe

    @property
    def ratio(self) -> float:
        """Error of the rows looked at over the expected one; 1 where none is expected."""
        expected = self.probe.limits.expected
        return self.probe.error / expected if expected > 0 else 1.0


def audit(
    kind: ArtifactKind,
    checkpoint: Checkpoint,
    *,
    asked: str | None = None,
    sample: float | None = None,
    threads: int | None = None,
    chunk_weights: int = CHUNK_WEIGHTS,
) -> Audit:
    """Compare an artifact's weights with the checkpoint's.

    Args:
        kind: What `identify` said.
        checkpoint: What it should hold.
        asked: Precision that was asked for, e.g. `int4` or `q4_k_m`; None to take what most weights have.
        sample: Share of the rows of each matrix to compare, evenly placed; None for all. Every tensor is compared.
        threads: That share the work; the processors that there are, at most four, when None. The result is the same.
        chunk_weights: Weights that a thread holds in float32 at once. The result is the same.
    """
    try:
        weights = artifact_weights(kind)
        with checkpoint.reader() as reader:
            found = _Auditor(weights, checkpoint, reader, gguf=kind.format == "gguf", chunk_weights=chunk_weights)
            return found.run(asked, sample, threads or min(4, os.cpu_count() or 1))
    except ArtifactError as error:
        finding = _finding("conservation/unreadable", "error", kind.path.name, str(error))
        checks = ("conservation/tensors", "conservation/values", "precision/types")
        return Audit(None, None, tuple(CheckResult(check, "fail", str(error), (finding,)) for check in checks))


def _finding(name: str, severity: Severity, subject: str, detail: str) -> Finding:
    return Finding(name, severity, subject, detail, FIXES[name])


def _snr(error: float) -> float | None:
    return -20 * math.log10(error) if error > 0 else None


class _Auditor:
    """One audit: claims, comparison, judgement."""

    def __init__(
        self,
        weights: Sequence[Weight],
        checkpoint: Checkpoint,
        reader: TensorReader,
        *,
        gguf: bool,
        chunk_weights: int,
    ) -> None:
        self.checkpoint, self.reader, self.chunk_weights = checkpoint, reader, chunk_weights
        self.findings: list[Finding] = []
        self.causes_sought = self.candidates_tried = 0
        self.by_shape: dict[tuple[int, ...], list[TensorInfo]] = {}
        for info in checkpoint.tensors.values():
            self.by_shape.setdefault(info.shape, []).append(info)
        named = claims(weights, checkpoint, gguf=gguf)
        taken = {source for claim in named for source in claim.sources}
        self.claimed = [
            (weight, claim if gguf or claim.sources or claim.computed else self._recognise(weight, taken))
            for weight, claim in zip(weights, named, strict=True)
        ]

    def run(self, asked: str | None, sample: float | None, threads: int) -> Audit:
        """Return everything found."""
        pieces = self._pieces()
        self._complete()
        measured = self._measure(pieces, sample, threads)
        bad = self._judge(measured)
        values = [finding for finding in self.findings if finding.id not in _OF_TENSORS]
        tensors = [finding for finding in self.findings if finding.id in _OF_TENSORS]
        conservation, entries = self._conservation(measured)
        precision, types = check_precision(
            [(weight, claim.sources) for weight, claim in self.claimed if not claim.computed],
            entries,
            self.checkpoint,
            asked,
        )
        checks = (self._tensor_check(conservation, tensors), self._value_check(measured, values, bad), types)
        return Audit(conservation, precision, checks)

    # --- What is where --------------------------------------------------------------------------------------------

    def _recognise(self, weight: Weight, taken: set[str]) -> Claim:
        """Return the tensors that a weight without a known name is by value; those without a claimant first.

        In GGUF a name is what a runtime finds a tensor by, so there it is not done.
        """
        if weight.unreadable is not None or _is_rotary(weight):
            return Claim(computed=weight.unreadable is None)
        best: tuple[float, tuple[str, ...]] = (0.5, ())
        for sources in self._candidates(weight):
            if self.candidates_tried == _MOST_CANDIDATES:
                break
            self.candidates_tried += 1
            error = error_of(*self._few_rows(weight, sources))
            error += 1e-6 * any(source in taken for source in sources)
            if error < best[0]:
                best = (error, sources)
        taken.update(best[1])
        return Claim(best[1])

    def _candidates(self, weight: Weight) -> Iterable[tuple[str, ...]]:
        """Yield single tensors of a weight's shape, and those that a layer may fuse."""
        yield from ((info.name,) for info in self.by_shape.get(weight.shape, ()))
        ending = "bias" if len(weight.shape) == 1 else "weight"
        for layer in range(self.checkpoint.config.num_layers):
            for parts in (
                ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                ("mlp.gate_proj", "mlp.up_proj"),
            ):
                names = tuple(f"model.layers.{layer}.{part}.{ending}" for part in parts)
                infos = [self.checkpoint.tensors[name] for name in names if name in self.checkpoint.tensors]
                rows = sum(info.shape[0] for info in infos)
                if len(infos) == len(names) and (rows, *infos[0].shape[1:]) == weight.shape:
                    yield names

    def _few_rows(self, weight: Weight, sources: tuple[str, ...]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        start, artifact, source = 0, [], []
        for name in sources:
            info = self.checkpoint.tensors[name]
            piece = Piece(weight, start, info)
            last = min(4, info.rows)
            artifact.append(piece.artifact_rows(0, last))
            source.append(self.reader.rows(info, 0, last))
            start += info.shape[0]
        axis = 1 if len(weight.shape) == 1 else 0
        return np.concatenate(artifact, axis), np.concatenate(source, axis)

    def _pieces(self) -> list[Piece]:
        """Return what is to be compared; weights at one place once."""
        found: dict[tuple[object, ...], Piece] = {}
        for weight, claim in self.claimed:
            if claim.computed:
                continue
            if not claim.sources:
                detail = f"of shape {list(weight.shape)} is no tensor of the checkpoint, by name or by value"
                self.findings.append(_finding("conservation/unknown", "error", weight.name, detail))
                continue
            infos = [self.checkpoint.tensors[name] for name in claim.sources]
            if not self._fits(weight, infos):
                continue
            if weight.unreadable is not None:
                finding = _finding("conservation/unread", "warning", weight.name, weight.unreadable)
                self.findings.append(finding)
                continue
            start = 0
            for info in infos:
                found.setdefault((weight.place, start, weight.shape, info.name), Piece(weight, start, info))
                start += info.shape[0]
        return list(found.values())

    def _fits(self, weight: Weight, infos: Sequence[TensorInfo]) -> bool:
        expected = (sum(info.shape[0] for info in infos), *infos[0].shape[1:])
        if expected in {weight.shape, (1, *weight.shape)}:
            return True
        names = " + ".join(info.name for info in infos)
        detail = f"has shape {list(weight.shape)}, but {names} has {list(expected)}"
        name = "conservation/shape"
        if weight.shape == expected[::-1] and len(infos) == 1 and weight.unreadable is None:
            rows = weight.rows(0, min(8, weight.shape[0]))
            turned = turned_rows(infos[0], self.reader, [(0, len(rows))], weight.shape[1])
            if error_of(rows, turned) < 0.5:
                name, detail = "conservation/transposed", f"holds {names} transposed"
        self.findings.append(_finding(name, "error", weight.name, detail))
        return False

    def _complete(self) -> None:
        """Find tensors of the checkpoint that nothing in the artifact claims to be."""
        covered = {source for _, claim in self.claimed for source in claim.sources}
        self.dropped: dict[str, str] = {}
        for name in self.checkpoint.tensors:
            if name in covered:
                continue
            reason = dropped_reason(name, self.checkpoint.config.num_layers)
            if reason is not None:
                self.dropped[name] = reason
                continue
            detail = "is in no tensor of the artifact"
            if name == HEAD:
                detail += "; a runtime would take the embedding for it, which is another matrix here"
            self.findings.append(_finding("conservation/missing", "error", name, detail))

    # --- Comparing ------------------------------------------------------------------------------------------------

    def _measure(self, pieces: Sequence[Piece], sample: float | None, threads: int) -> list[_Measured]:
        jobs = [(piece, ranges) for piece in pieces for ranges in _jobs(piece, sample)]
        with ThreadPoolExecutor(threads) as pool:
            sums = list(
                pool.map(lambda job: compare_rows(job[0], self.reader, job[1], chunk_weights=self.chunk_weights), jobs)
            )
            probes = list(pool.map(self._probe, pieces))
        joined: dict[Piece, list[RowSums]] = {}
        for (piece, _), part in zip(jobs, sums, strict=True):
            joined.setdefault(piece, []).append(part)
        return [_Measured(piece, _join(joined[piece]), probe) for piece, probe in zip(pieces, probes, strict=True)]

    def _suspect(self, piece: Piece) -> Suspect:
        return suspect_of(piece, self.reader, even_blocks(piece.rows, _PROBE_ROWS))

    def _probe(self, piece: Piece) -> _Probe:
        rows = self._suspect(piece)
        return _Probe(rows.error, rows.limits, scale_of(rows.artifact, rows.source) / rows.scale, rows.source.size)

    # --- Judging --------------------------------------------------------------------------------------------------

    def _judge(self, measured: Sequence[_Measured]) -> int:
        """Add a finding for each piece that differs, and return how many do."""
        peers = _peer_limits(measured)
        bad: dict[Piece, tuple[Cause, Severity]] = {}
        for item in measured:
            verdict = self._verdict(item, peers.get(item.piece.weight.type, math.inf))
            if verdict is not None:
                bad[item.piece] = verdict
        embedding_is_sound = any(
            item.piece.source.name == EMBEDDING and item.piece.weight.use == "embedding" and item.piece not in bad
            for item in measured
        )
        for piece, (cause, severity) in bad.items():
            self.findings.append(self._named(piece, cause, severity, embedding_is_sound=embedding_is_sound))
        return len(bad)

    def _named(self, piece: Piece, cause: Cause, severity: Severity, *, embedding_is_sound: bool) -> Finding:
        name, detail = cause.id, cause.detail
        if len(piece.weight.shape) and piece.weight.weights != piece.source.elements:
            detail = f"the part that is {piece.source.name}: {detail}"
        if piece.weight.use == "head" and piece.source.name == EMBEDDING and embedding_is_sound and severity == "error":
            name, detail = "conservation/tied", f"should be the embedding's twin, but {detail}"
        if (
            piece.weight.use == "head"
            and piece.source.name == HEAD
            and detail.endswith(f"{EMBEDDING} is in the checkpoint")
        ):
            name = "conservation/tied"
        return _finding(name, severity, piece.weight.name, detail)

    def _verdict(self, item: _Measured, peer_limit: float) -> tuple[Cause, Severity] | None:
        probe, piece = item.probe, item.piece
        if item.sums.broken:
            return Cause("conservation/overflow", f"has {item.sums.broken} values that are NaN or infinite"), "error"
        if (far := self._far_rows(item)) is not None:
            return far
        error, limits, factor = probe.error, probe.limits, probe.factor
        scaled = abs(factor - 1) > _scale_limit(probe, piece)
        unlike = not piece.weight.is_float and item.ratio > peer_limit
        if error <= limits.warning and not scaled and not unlike:
            return None
        cause = self._cause(self._suspect(piece)) if error > limits.warning or unlike else None
        if cause is None and scaled and error <= limits.error:
            cause = Cause("conservation/scale", f"is {factor:.4g} times the checkpoint's")
        if cause is not None:
            return cause, "error"
        detail = f"differs by {error:.3g}, where rounding to {piece.weight.type} explains {limits.expected:.3g}"
        if item.sums.cosine < _STRANGE:
            detail = f"is no tensor of the checkpoint (its cosine with {piece.source.name} is {item.sums.cosine:.3f})"
        severe = error > limits.error or unlike
        return Cause("conservation/altered", detail), "error" if severe else "warning"

    def _cause(self, suspect: Suspect) -> Cause | None:
        """Return why rows differ; of more tensors than findings are listed nobody asks."""
        if self.causes_sought == _MAX_FINDINGS:
            return None
        self.causes_sought += 1
        source = suspect.piece.source
        layer, part = split_layer(source.name)
        others = [info for info in self.by_shape[source.shape] if info.name != source.name]
        if len(others) > _MOST_OTHERS:  # of many experts, those that are most likely taken for each other
            others.sort(key=lambda info: sum(map(operator.ne, split_layer(info.name), (layer, part))))
        return find_cause(suspect, self.reader, others[:_MOST_OTHERS], self.checkpoint.config.head_dim)

    def _far_rows(self, item: _Measured) -> tuple[Cause, Severity] | None:
        """Look at the rows that differ most; some may be wrong where the tensor as a whole is not."""
        probe, errors = item.probe, item.sums.row_errors()
        if item.piece.rows < 2 or probe.error > probe.limits.error:
            return None
        limit = 1.5 * probe.limits.expected + _LEAST_SCALE
        far = np.flatnonzero(errors > limit)
        if not far.size:
            return None
        worst = np.sort(far[np.argsort(-errors[far], kind="stable")[:_WORST_ROWS]])
        ranges = [(int(row), int(row) + 1) for row in item.sums.rows[worst]]
        second = suspect_of(item.piece, self.reader, ranges)
        rounded = item.piece.weight.rounding(second.source)
        floor = float(np.median(item.sums.source)) * 1e-4
        norms = np.maximum(np.vecdot(second.source, second.source), floor)
        expected = np.sqrt(np.vecdot(rounded - second.source, rounded - second.source) / norms)
        wrong = np.flatnonzero(errors[worst] > 2 * expected + 2 * _LEAST_SCALE)
        if not wrong.size:
            return None
        rows = replace(
            second,
            ranges=[ranges[index] for index in wrong],
            artifact=second.artifact[wrong],
            source=second.source[wrong],
        )
        first = int(item.sums.rows[worst[wrong[0]]])
        cause = self._cause(rows) or Cause("conservation/altered", f"differs by {rows.error:.3g}")
        count = wrong.size if far.size <= _WORST_ROWS else far.size
        return Cause(cause.id, f"{cause.detail} in {count} of {item.sums.rows.size} rows, first row {first}"), "error"

    # --- Reporting ------------------------------------------------------------------------------------------------

    def _conservation(self, measured: Sequence[_Measured]) -> tuple[Conservation, dict[str, TensorError]]:
        entries = _entries(measured)
        total = _total_error([item for item in measured if len(item.piece.weight.shape) > 1])
        single = {claim.sources[0] for _, claim in self.claimed if len(claim.sources) == 1}
        fused = {source for _, claim in self.claimed if len(claim.sources) > 1 for source in claim.sources}
        uses = [source for _, claim in self.claimed for source in claim.sources]
        ordered = sorted(entries.values(), key=lambda entry: (-entry.relative_error, entry.name))
        conservation = Conservation(
            exported=len(single),
            tied=len(uses) - len(set(uses)),
            fused=len(fused),
            dropped=self.dropped,
            compared_weights=sum(item.sums.rows.size * item.piece.columns for item in measured),
            relative_error=total,
            snr_db=_snr(total),
            worst=tuple(ordered[:_WORST_TENSORS]),
            layers=_layers(measured),
        )
        return conservation, entries

    def _tensor_check(self, found: Conservation, findings: Sequence[Finding]) -> CheckResult:
        check = "conservation/tensors"
        if findings:
            return CheckResult(check, "fail", _summary(findings), tuple(findings[:_MAX_FINDINGS]))
        dropped = f", {len(found.dropped)} dropped by design" if found.dropped else ""
        detail = (
            f"{found.exported} tensors of the checkpoint as they are, {found.fused} fused{dropped}; none is left over"
        )
        return CheckResult(check, "pass", detail)

    def _value_check(self, measured: Sequence[_Measured], findings: Sequence[Finding], bad: int) -> CheckResult:
        check = "conservation/values"
        listed = tuple(findings[:_MAX_FINDINGS])
        if any(finding.severity == "error" for finding in findings):
            return CheckResult(check, "fail", _summary(findings), listed)
        unread = sum(finding.id == "conservation/unread" for finding in findings)
        if unread:
            return CheckResult(check, "not_measured", f"{unread} tensors lie in types that are not read", listed)
        detail = f"{len(measured)} parts agree with the checkpoint as well as their types allow"
        if bad:
            detail += f"; {bad} differ somewhat more than plain rounding explains"
        return CheckResult(check, "pass", detail, listed)


#: Ids of findings that are about what is there, and not about values.
_OF_TENSORS: Final = frozenset({"conservation/missing", "conservation/unknown", "conservation/shape"})


def _summary(findings: Sequence[Finding]) -> str:
    """Return the first finding and how many there are of each id."""
    first = findings[0]
    counts = Counter(finding.id for finding in findings)
    listed = ", ".join(f"{count} × {name}" for name, count in counts.most_common())
    return f"{first.subject} {first.detail}" + (f" ({listed})" if len(findings) > 1 else "")


def _jobs(piece: Piece, sample: float | None) -> list[list[tuple[int, int]]]:
    """Return the ranges of rows to compare, in portions for one thread each."""
    if piece.rows == 1:
        return [[(0, 1)]]
    if sample is not None:
        return [list(even_blocks(piece.rows, max(_PROBE_ROWS, math.ceil(piece.rows * sample))))]
    step = max(1, _JOB_WEIGHTS // piece.columns)
    return [[(first, min(piece.rows, first + step))] for first in range(0, piece.rows, step)]


def _join(parts: Sequence[RowSums]) -> RowSums:
    if len(parts) == 1:
        return parts[0]
    return RowSums(
        np.concatenate([part.error for part in parts]),
        np.concatenate([part.source for part in parts]),
        np.concatenate([part.artifact for part in parts]),
        np.concatenate([part.product for part in parts]),
        np.concatenate([part.rows for part in parts]),
        sum(part.broken for part in parts),
    )


def _scale_limit(probe: _Probe, piece: Piece) -> float:
    """Return how far from 1 a factor may be: rounding for the least square error shrinks by the square of the error."""
    if piece.weight.is_float:
        return math.inf  # the error itself tells
    expected = probe.limits.expected
    return max(_LEAST_SCALE, 1.1 * expected**2, 6 * expected / math.sqrt(max(1, probe.weights)))


def _peer_limits(measured: Sequence[_Measured]) -> Mapping[str, float]:
    """Return by type how much error over the expected one is unlike all others of it; only where those are alike."""
    ratios: dict[str, list[float]] = {}
    for item in measured:
        if not item.piece.weight.is_float and item.probe.limits.expected > 0:
            ratios.setdefault(item.piece.weight.type, []).append(item.ratio)
    found = {}
    for name, values in ratios.items():
        low, middle, high = (float(value) for value in np.quantile(values, (0.1, 0.5, 0.8)))
        if len(values) >= _LEAST_PEERS and high - low < _ALIKE:
            found[name] = middle + _UNLIKE
    return found


def _total_error(measured: Sequence[_Measured]) -> float:
    """Return the relative error of all together, each tensor by all its rows, however many of them were read."""
    sums = np.zeros(3)
    for item in measured:
        share = item.piece.rows / item.sums.rows.size
        sums += [share * float(part.sum()) for part in (item.sums.error, item.sums.source, item.sums.artifact)]
    return relative(*sums.tolist())


def _entries(measured: Sequence[_Measured]) -> dict[str, TensorError]:
    """Return each tensor of the artifact with its errors, the parts of a fused one together."""
    parts: dict[str, list[_Measured]] = {}
    for item in measured:
        parts.setdefault(item.piece.weight.name, []).append(item)
    found = {}
    for name, items in parts.items():
        sums, weight = _join([item.sums for item in items]), items[0].piece.weight
        sources = tuple(item.piece.source.name for item in items)
        error = sums.relative_error
        found[name] = TensorError(
            name, sources, weight.type, weight.weights, weight.bits_per_weight, error, sums.cosine, _snr(error)
        )
    return found


def _layers(measured: Sequence[_Measured]) -> tuple[LayerErrors, ...]:
    errors: dict[int | None, dict[str, float]] = {}
    for item in measured:
        layer, part = split_layer(item.piece.source.name)
        if item.piece.weight.use == "head":
            part = "lm_head"
        of_layer = errors.setdefault(layer, {})
        of_layer[part] = max(of_layer.get(part, 0.0), item.sums.relative_error)  # that of the worst expert
    ordered = sorted(errors, key=lambda layer: (layer is None, layer or 0))
    return tuple(LayerErrors(layer, errors[layer]) for layer in ordered)


def _is_rotary(weight: Weight) -> bool:
    """Tell a table of cosines or sines, or the frequencies of one, by its values."""
    if not weight.is_float:
        return False
    first = weight.rows(0, 1)[0].astype(np.float64)
    if len(weight.shape) == 1:
        steps = np.diff(np.log(first)) if first.size > 2 and (first > 0).all() else np.ones(1)
        return bool(abs(first[0] - 1) < 1e-6 and steps[0] < 0 and np.allclose(steps, steps[0], rtol=1e-3))
    if not (np.allclose(first, 1) or np.allclose(first, 0)):
        return False
    rows = weight.rows(0, min(64, weight.shape[0]))
    return bool(np.abs(rows).max() <= 1.001 and not np.allclose(rows, rows[0]))
